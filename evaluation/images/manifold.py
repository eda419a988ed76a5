"""Precision, recall, density and coverage, from distances to nearest neighbours, and their jackknife over blocks.

Letters: N generated samples, M real ones, D feature dimensions, k neighbours. Everything is float64. The outcomes of
single images are not independent: one real image decides about many generated ones. So the standard error leaves out
blocks of either set, with everything that depends on them: the neighbours, the radii and the outcomes. That takes no
second look at the features: distances are made once, in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evaluation.images.frechet import Array, as_features
from launch.errors import UserError

CHUNK = 2048
"""Rows of a distance matrix held at once: 2048 x 50,000 float64 are 0.8 GB."""
NAMES = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Manifold:
    """Per-image outcomes, whose means are the metrics."""

    precision: np.ndarray
    """bool (N,): the generated image lies within the k-th neighbour distance of some real image."""
    recall: np.ndarray
    """bool (M,): the real image lies within the k-th neighbour distance of some generated image."""
    density: Array
    """float (N,): the number of such real neighbourhoods that hold the generated image, divided by k."""
    coverage: np.ndarray
    """bool (M,): the real image's neighbourhood holds some generated image."""


@dataclass(frozen=True)
class ManifoldJackknife:
    """The four metrics with each block of generated images left out, (B, 4), and with each block of real ones."""

    without_generated: Array
    without_real: Array


def precision_recall_density_coverage(generated: ArrayLike, real: ArrayLike, k: int = 3) -> Manifold:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al.
    2020, arXiv 2002.09797), as outcomes of the single images. `generated` (N, D), `real` (M, D), both with more than
    k rows.
    """
    x, y = _check(generated, real, k)
    radii_x, radii_y = _radii(x, np.zeros(len(x), dtype=np.int64), k)[:, 0], _radii(y, np.zeros(len(y), int), k)[:, 0]
    found = _Tally(len(x), len(y), 1, 1)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        block = squared_distances(x[rows], y)
        found.hold_real[rows, 0] = (block <= radii_y[None]).sum(axis=1)
        found.covered[:, 0] |= (block <= radii_y[None]).any(axis=0)
        found.recalled[:, 0] |= (block <= radii_x[rows, None]).any(axis=0)
    inside = found.hold_real[:, 0]
    return Manifold(inside > 0, found.recalled[:, 0], inside / k, found.covered[:, 0])


def jackknife_manifold(
    generated: ArrayLike, real: ArrayLike, blocks_x: np.ndarray, blocks_y: np.ndarray, k: int = 3
) -> ManifoldJackknife:
    """The metrics without each block: `blocks_x` (N,) and `blocks_y` (M,) hold each image's block, counted from 0.

    Each set needs more than k images besides any block.
    """
    x, y = _check(generated, real, k)
    count_x, count_y = int(blocks_x.max()) + 1, int(blocks_y.max()) + 1
    radii_x, radii_y = _radii(x, blocks_x, k), _radii(y, blocks_y, k)
    tally = _Tally(len(x), len(y), count_x + 1, count_y + 1)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        _add_chunk(tally, rows, squared_distances(x[rows], y), radii_x, radii_y, blocks_x, blocks_y)
    return ManifoldJackknife(
        np.array([_without_generated(tally, blocks_x, b, k) for b in range(count_x)]),
        np.array([_without_real(tally, blocks_y, b, k) for b in range(count_y)]),
    )


class _Tally:
    """What distances decide. Column 0 is for the whole sets, column 1 + b for a set without its block b."""

    def __init__(self, n: int, m: int, columns_x: int, columns_y: int) -> None:
        self.hold_real = np.zeros((n, columns_y))
        """Real neighbourhoods around each generated image, without a block of real ones."""
        self.recalled = np.zeros((m, columns_x), dtype=bool)
        """Real image within some generated neighbourhood, without a block of generated ones."""
        self.covered = np.zeros((m, columns_x), dtype=bool)
        """Real neighbourhood that holds some generated image, without a block of generated ones."""
        self.covered_by_block = np.zeros((m, columns_y), dtype=bool)
        """Real neighbourhood, as it is without a block of real images, that holds some generated image."""


def _add_chunk(
    tally: _Tally,
    rows: slice,
    block: Array,
    radii_x: Array,
    radii_y: Array,
    blocks_x: np.ndarray,
    blocks_y: np.ndarray,
) -> None:
    """Count a chunk of squared distances (rows, M); radii (N, 1 + B) as of `_radii`."""
    own = blocks_x[rows]
    within = block <= radii_y[None, :, 0]
    tally.hold_real[rows, 0] = within.sum(axis=1)
    tally.recalled[:, 0] |= (block <= radii_x[rows, :1]).any(axis=0)
    tally.covered[:, 0] |= within.any(axis=0)
    for b in range(tally.covered.shape[1] - 1):
        others = own != b
        tally.covered[:, 1 + b] |= within[others].any(axis=0)
        tally.recalled[:, 1 + b] |= (block[others] <= radii_x[rows, 1 + b][others, None]).any(axis=0)
    for b in range(tally.hold_real.shape[1] - 1):
        wider = block <= radii_y[None, :, 1 + b]  # a neighbour is missing: the radius is the same or larger
        wider &= blocks_y[None] != b
        tally.hold_real[rows, 1 + b] = wider.sum(axis=1)
        tally.covered_by_block[:, 1 + b] |= wider.any(axis=0)


def _without_generated(tally: _Tally, blocks_x: np.ndarray, b: int, k: int) -> list[float]:
    kept = tally.hold_real[blocks_x != b, 0]
    return [(kept > 0).mean(), tally.recalled[:, 1 + b].mean(), kept.mean() / k, tally.covered[:, 1 + b].mean()]


def _without_real(tally: _Tally, blocks_y: np.ndarray, b: int, k: int) -> list[float]:
    kept, inside = blocks_y != b, tally.hold_real[:, 1 + b]
    recalled, covered = tally.recalled[kept, 0].mean(), tally.covered_by_block[kept, 1 + b].mean()
    return [(inside > 0).mean(), recalled, inside.mean() / k, covered]


# ---------------------------------------------------------------------------------------------- distances


def _check(generated: ArrayLike, real: ArrayLike, k: int) -> tuple[Array, Array]:
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    if min(len(x), len(y)) <= k:
        raise UserError(
            f"precision and recall with k = {k} need more than {k} images in each set, not {len(x)} and {len(y)}"
        )
    if x.shape[1] != y.shape[1]:
        raise UserError(f"the sets have {x.shape[1]} and {y.shape[1]} dimensions; use one extractor for both")
    return x, y


def squared_distances(x: Array, y: Array) -> Array:
    """Squared Euclidean distances (N, M)."""
    squared = x @ y.T
    squared *= -2
    squared += (x**2).sum(axis=1)[:, None]
    squared += (y**2).sum(axis=1)[None]
    return np.maximum(squared, 0.0, out=squared)


def nearest_neighbours(x: ArrayLike, y: ArrayLike, count: int) -> tuple[np.ndarray, Array]:
    """Index (N, count) and Euclidean distance of the nearest rows of y (M, D), M >= count, to each of x (N, D)."""
    rows, others = as_features(x), as_features(y)
    indices, distances = [], []
    for start in range(0, len(rows), CHUNK):
        block = squared_distances(rows[start : start + CHUNK], others)
        index = np.argpartition(block, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(block, index, axis=1)
        order = np.argsort(near, axis=1, kind="stable")
        indices.append(np.take_along_axis(index, order, axis=1))
        distances.append(np.sqrt(np.take_along_axis(near, order, axis=1)))
    return np.concatenate(indices), np.concatenate(distances)


def _radii(x: Array, blocks: np.ndarray, k: int) -> Array:
    """Squared distance of each row to its k-th neighbour in the same set, itself not counted: (N, 1 + B).

    Column 0 is that in the whole set, column 1 + b that without the rows of block b (NaN for the rows of b itself).
    With one block alone there is column 0 only.
    """
    count = int(blocks.max()) + 1
    parts = []
    for start in range(0, len(x), CHUNK):
        block = squared_distances(x[start : start + CHUNK], x)
        here = np.arange(len(block))
        block[here, start + here] = -1.0  # the row itself is first, whatever rounding makes of its distance
        parts.append(_nearest(block, start, blocks, count, k))
    return np.concatenate(parts)


def _nearest(block: Array, start: int, blocks: np.ndarray, count: int, k: int) -> Array:
    """`_radii` of the rows of a chunk: from a short list of neighbours, longer where a block holds too many of them."""
    length = min(4 * k + 5, block.shape[1])
    while True:
        listed = np.argpartition(block, length - 1, axis=1)[:, :length]
        distances = np.take_along_axis(block, listed, axis=1)
        order = np.argsort(distances, axis=1)
        listed, distances = np.take_along_axis(listed, order, axis=1), np.take_along_axis(distances, order, axis=1)
        radii = np.full((len(block), 1 + (count if count > 1 else 0)), np.nan)
        radii[:, 0] = distances[:, k]
        enough = True
        for b in range(radii.shape[1] - 1):
            kept = blocks[listed] != b
            mine = blocks[start : start + len(block)] == b
            rank = kept.cumsum(axis=1)
            enough &= bool((rank[~mine, -1] > k).all())
            place = np.argmax(rank == k + 1, axis=1)  # the row itself is kept, so the k-th neighbour is number k + 1
            radii[~mine, 1 + b] = distances[np.arange(len(block)), place][~mine]
        if enough:
            return radii
        if length == block.shape[1]:
            raise UserError(f"precision and recall with k = {k}: a block leaves too few images; use fewer blocks")
        length = min(2 * length, block.shape[1])
