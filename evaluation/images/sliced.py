"""MIND, the Monge Inception Distance: a sliced Wasserstein distance of two sets of features.

Letters: N generated samples, M real ones, D dimensions, P random directions. Everything is float64.

    MIND = 3 D * mean over unit vectors u of W2(u.X, u.Y)^2

(Berthet et al. 2026, arXiv 2605.06797). In one dimension the optimal coupling pairs the sorted samples, so that W2^2 is a
mean of squared differences; with N != M it is the integral over the two quantile functions, which are steps, so that no
sample has to be dropped (torch-fidelity drops some at random then). Unlike a Fréchet distance it sees all moments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evaluation.images.frechet import Array, as_features
from launch.errors import UserError
from launch.seeding import numpy_generator

DIRECTIONS = 1000
CHUNK_CELLS = 2**24
"""Projections (samples times directions) held at once: 128 MB."""


@dataclass(frozen=True)
class SlicedDistance:
    """The distance, and what it is without each block of generated (B,) and of real images (B,); empty without blocks."""

    value: float
    without_generated: Array
    without_real: Array


def random_directions(dimensions: int, seed: int, count: int = DIRECTIONS) -> Array:
    """`count` unit vectors (P, D), uniform on the sphere; the same for both sets and for all sets of an evaluation."""
    vectors = numpy_generator(seed, "mind directions").standard_normal((count, dimensions))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def mind(generated: ArrayLike, real: ArrayLike, seed: int = 0, directions: int = DIRECTIONS) -> float:
    """The Monge distance of features (N, D) and (M, D); squared feature units times 3, never negative."""
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    vectors = random_directions(x.shape[1], seed, directions)
    return sliced_distance(x, y, vectors, np.zeros(len(x), int), np.zeros(len(y), int)).value


def sliced_distance(
    generated: ArrayLike, real: ArrayLike, vectors: Array, blocks_x: np.ndarray, blocks_y: np.ndarray
) -> SlicedDistance:
    """MIND along unit `vectors` (P, D), and its values without each block of images (see `SlicedDistance`).

    Each projection is sorted once; without a block it is still sorted.
    """
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    if x.shape[1] != y.shape[1]:
        raise UserError(f"the sets have {x.shape[1]} and {y.shape[1]} dimensions; use one extractor for both")
    if not len(x) or not len(y):
        raise UserError(f"a Monge distance needs images in each set; there are {len(x)} and {len(y)}")
    counts = [int(blocks.max()) + 1 for blocks in (blocks_x, blocks_y)]
    whole, left_out = 0.0, [np.zeros(count if count > 1 else 0) for count in counts]
    step = max(1, CHUNK_CELLS // (len(x) + len(y)))
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        along_x, ids_x = _sorted(part @ x.T, blocks_x)
        along_y, ids_y = _sorted(part @ y.T, blocks_y)
        whole += _wasserstein(along_x, along_y)
        for b in range(len(left_out[0])):
            left_out[0][b] += _wasserstein(_without(along_x, ids_x, b), along_y)
        for b in range(len(left_out[1])):
            left_out[1][b] += _wasserstein(along_x, _without(along_y, ids_y, b))
    factor = 3 * x.shape[1] / len(vectors)
    return SlicedDistance(factor * whole, factor * left_out[0], factor * left_out[1])


def _sorted(projected: Array, blocks: np.ndarray) -> tuple[Array, np.ndarray]:
    """Projections (P, N) sorted along each row, and the blocks of the images in that order."""
    order = np.argsort(projected, axis=1)
    return np.take_along_axis(projected, order, axis=1), blocks[order]


def _without(along: Array, ids: np.ndarray, block: int) -> Array:
    """Rows (P, N) without the entries of a block: as many are missing in each row."""
    return along[ids != block].reshape(len(along), -1)


def _wasserstein(x: Array, y: Array) -> float:
    """The sum over rows of W2^2 of two sorted samples (P, N) and (P, M)."""
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return float(((x - y) ** 2).sum() / n)
    steps = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # quantiles in units of 1 / (N M): exact
    weights = np.diff(steps, prepend=0) / (n * m)
    gaps = np.take(x, (steps - 1) // m, axis=1)  # in place from here: large sets are bound by memory
    gaps -= np.take(y, (steps - 1) // n, axis=1)
    gaps *= gaps
    return float((gaps @ weights).sum())
