"""Metrics over features: Inception Score, kernel distance, precision, recall, density and coverage.

Letters: N generated samples, M real ones, D feature dimensions, C classes. Everything is float64. The Fréchet
distance lives in `frechet`; it is named here too, so that one module has them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from evaluation.images.frechet import (
    Array,
    FeatureStatistics,
    as_features,
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_from_statistics,
)
from launch.errors import UserError
from launch.seeding import permutation

__all__ = [
    "FeatureStatistics",
    "KernelDistance",
    "Manifold",
    "frechet_distance",
    "frechet_distance_from_features",
    "frechet_distance_from_statistics",
    "inception_score",
    "kernel_distance",
    "precision_recall_density_coverage",
    "shuffled",
]

CHUNK = 2048
"""Rows of a kernel or distance matrix held at once: 2048 x 50,000 float64 are 0.8 GB."""


# ---------------------------------------------------------------------------------------------- Inception Score


def shuffled(count: int, seed: int) -> np.ndarray:
    """The order (N,) in which images are cut into splits: a set sorted by class would score 1.0 in every split."""
    return permutation(count, seed, "inception_score")


def inception_score(logits: ArrayLike, splits: int = 1) -> Array:
    """exp E KL(p(y|x) || p(y)) of each split, taken in order: (splits,), each between 1 and C.

    `logits` is (N, C); shuffle first (`shuffled`). Salimans et al. 2016, arXiv 1606.03498. The field's custom of 10
    splits is meant for 50,000 images: a split of n images cannot score above n, and small ones score low.
    """
    matrix = as_features(logits, "logits")
    if not 1 <= splits <= len(matrix):
        raise UserError(f"splits is {splits} and there are {len(matrix)} images; every split needs at least one")
    shifted = matrix - matrix.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    bounds = [index * len(matrix) // splits for index in range(splits + 1)]
    return np.array([_score(log_p[a:b]) for a, b in pairwise(bounds)])


def _score(log_p: Array) -> float:
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    safe = np.where(marginal > 0, marginal, 1.0)  # a class of probability 0 everywhere adds 0 log 0 = 0
    return float(np.exp((p * (log_p - np.log(safe))).sum(axis=1).mean()))


# ---------------------------------------------------------------------------------------------- kernel distance


@dataclass(frozen=True)
class KernelDistance:
    """The unbiased squared MMD and its standard error."""

    value: float
    standard_error: float


def _polynomial(x: Array, y: Array) -> Array:
    """The cubic kernel (x . y / D + 1)^3 of Binkowski et al. 2018 (arXiv 1801.01401)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _kernel_sums(x: Array, y: Array) -> tuple[Array, Array]:
    """Row sums (N,) and column sums (M,) of the kernel matrix, a chunk of rows at a time."""
    rows, columns = np.empty(len(x)), np.zeros(len(y))
    for start in range(0, len(x), CHUNK):
        block = _polynomial(x[start : start + CHUNK], y)
        rows[start : start + CHUNK] = block.sum(axis=1)
        columns += block.sum(axis=0)
    return rows, columns


def _self_sums(x: Array) -> Array:
    """Row sums (N,) of the kernel of a set with itself, without the diagonal."""
    return _kernel_sums(x, x)[0] - (np.einsum("nd,nd->n", x, x) / x.shape[1] + 1.0) ** 3


def kernel_distance(generated: ArrayLike, real: ArrayLike) -> KernelDistance:
    """KID over all pairs: the U-statistic of the squared MMD, with a delete-one jackknife standard error.

    `generated` (N, D), `real` (M, D), each with at least 3 rows. Unbiased, so it may be below zero for like sets
    and is not clamped. All pairs at once have a lower variance than the mean over 100 random subsets of 1,000.
    """
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise UserError(f"a kernel distance needs at least 3 images in each set; there are {n} and {m}")
    xx, yy = _self_sums(x), _self_sums(y)
    xy, yx = _kernel_sums(x, y)
    sum_xx, sum_yy, sum_xy = xx.sum(), yy.sum(), xy.sum()
    value = sum_xx / (n * (n - 1)) + sum_yy / (m * (m - 1)) - 2 * sum_xy / (n * m)
    without_x = (sum_xx - 2 * xx) / ((n - 1) * (n - 2)) - 2 * (sum_xy - xy) / ((n - 1) * m)
    without_y = (sum_yy - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (sum_xy - yx) / (n * (m - 1))
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return KernelDistance(float(value), float(np.sqrt(variance)))


# ---------------------------------------------------------------------------------------------- manifolds


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


def _distances(x: Array, y: Array) -> Array:
    """Squared Euclidean distances (N, M)."""
    squared = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * x @ y.T
    return np.maximum(squared, 0.0)


def _radii(x: Array, k: int) -> Array:
    """Squared distance (N,) of each row to its k-th neighbour in the same set, itself not counted."""
    parts = []
    for start in range(0, len(x), CHUNK):
        block = _distances(x[start : start + CHUNK], x)
        block[np.arange(len(block)), start + np.arange(len(block))] = 0.0  # rounding must not push the row itself away
        parts.append(np.partition(block, k, axis=1)[:, k])
    return np.concatenate(parts)


def precision_recall_density_coverage(generated: ArrayLike, real: ArrayLike, k: int = 3) -> Manifold:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al.
    2020, arXiv 2002.09797), as outcomes of the single images. `generated` (N, D), `real` (M, D), both with more than
    k rows.
    """
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    if min(len(x), len(y)) <= k:
        raise UserError(
            f"precision and recall with k = {k} need more than {k} images in each set, not {len(x)} and {len(y)}"
        )
    radii_x, radii_y = _radii(x, k), _radii(y, k)
    inside_real, covered = np.empty(len(x)), np.zeros(len(y), dtype=bool)
    inside_generated = np.zeros(len(y), dtype=bool)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        block = _distances(x[rows], y)
        within = block <= radii_y[None]
        inside_real[rows] = within.sum(axis=1)
        covered |= within.any(axis=0)
        inside_generated |= (block <= radii_x[rows, None]).any(axis=0)
    return Manifold(inside_real > 0, inside_generated, inside_real / k, covered)
