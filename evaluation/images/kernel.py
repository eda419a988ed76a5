"""Kernel distances (squared MMD) of two sets of features with their variance: KID and CMMD.

Letters: N generated samples, M real ones, D dimensions; k a kernel. Everything is float64. The variance is that of the
two-sample U-statistic over all pairs, in Hoeffding's two parts, each estimated without bias from row sums and sums of
squares of the three kernel matrices: no matrix is kept, and no resampling is needed. Written out for one kernel matrix
in Bounliphone et al. 2016 (arXiv 1511.04581); here for N and M that differ, with the second-order part, which is all
there is when the distributions are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evaluation.images.frechet import Array, as_features
from launch.errors import UserError

CHUNK = 2048
"""Rows of a kernel matrix held at once: 2048 x 50,000 float64 are 0.8 GB."""
FEWEST = 4
"""Images in each set that the variance needs: it takes four different ones at a time."""
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0

Kernel = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class KernelDistance:
    """A squared MMD and its standard error."""

    value: float
    standard_error: float


def polynomial_kernel(x: Array, y: Array) -> Array:
    """The cubic kernel (x . y / D + 1)^3 (N, M) of Binkowski et al. 2018 (arXiv 1801.01401)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def gaussian_kernel(x: Array, y: Array) -> Array:
    """exp(-|x - y|^2 / (2 sigma^2)) - 1 (N, M) with sigma 10: less the constant, which cancels in an MMD, more digits."""
    squared = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * x @ y.T
    return np.expm1(-np.maximum(squared, 0.0) / (2 * CMMD_SIGMA**2))


def kernel_distance(generated: ArrayLike, real: ArrayLike) -> KernelDistance:
    """KID over all pairs: the unbiased U-statistic of the squared MMD, with its standard error.

    `generated` (N, D), `real` (M, D), each with at least 4 rows. Unbiased, so it may be below zero for like sets
    and is not clamped. All pairs at once have a lower variance than the mean over 100 random subsets of 1,000.
    """
    return _distance(*_both(generated, real), polynomial_kernel, biased=False)


def cmmd(generated: ArrayLike, real: ArrayLike) -> KernelDistance:
    """1000 times the biased squared MMD with a Gaussian kernel of sigma 10: CMMD of Jayasumana et al. 2024 (arXiv
    2401.09603) where the features (N, D) and (M, D) are CLIP's image embeddings scaled to length 1. Never negative.
    """
    x, y = _both(generated, real)
    found = _distance(x, y, gaussian_kernel, biased=True)
    return KernelDistance(max(CMMD_SCALE * found.value, 0.0), CMMD_SCALE * found.standard_error)


def unit_length(features: ArrayLike) -> Array:
    """Features (N, D) scaled to Euclidean length 1; a row of zeros, which has no direction, stays as it is."""
    rows = as_features(features)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _both(generated: ArrayLike, real: ArrayLike) -> tuple[Array, Array]:
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    if min(len(x), len(y)) < FEWEST:
        raise UserError(
            f"a kernel distance needs at least {FEWEST} images in each set; there are {len(x)} and {len(y)}"
        )
    if x.shape[1] != y.shape[1]:
        raise UserError(f"the sets have {x.shape[1]} and {y.shape[1]} dimensions; use one extractor for both")
    return x, y


# ---------------------------------------------------------------------------------------------- sums


@dataclass(frozen=True)
class KernelSums:
    """Of a kernel matrix, less a constant: row sums (N,), column sums (M,), and the sum of squares."""

    rows: Array
    columns: Array
    squares: float

    @property
    def total(self) -> float:
        return float(self.rows.sum())


def _sums(kernel: Kernel, x: Array, y: Array, constant: float) -> KernelSums:
    rows, columns, squares = np.empty(len(x)), np.zeros(len(y)), 0.0
    for start in range(0, len(x), CHUNK):
        block = kernel(x[start : start + CHUNK], y) - constant
        rows[start : start + CHUNK] = block.sum(axis=1)
        columns += block.sum(axis=0)
        squares += float(np.vdot(block, block))
    return KernelSums(rows, columns, squares)


def _self_sums(kernel: Kernel, x: Array, constant: float) -> tuple[KernelSums, float]:
    """The sums of a set's kernel matrix with itself without the diagonal, and the sum of the diagonal."""
    whole = _sums(kernel, x, x, constant)
    diagonal = np.concatenate([np.diag(kernel(part, part)) for part in _parts(x)]) - constant
    rows = whole.rows - diagonal
    return KernelSums(rows, rows, whole.squares - float(diagonal @ diagonal)), float(diagonal.sum())


def _parts(x: Array) -> list[Array]:
    return [x[start : start + 256] for start in range(0, len(x), 256)]


def _distance(x: Array, y: Array, kernel: Kernel, biased: bool) -> KernelDistance:
    """The squared MMD (V-statistic if biased, else U-statistic) and the U-statistic's standard error."""
    n, m = len(x), len(y)
    constant = float(kernel(x.mean(axis=0)[None], y.mean(axis=0)[None])[0, 0])  # it cancels, and large sums with it
    (xx, diagonal_x), (yy, diagonal_y) = _self_sums(kernel, x, constant), _self_sums(kernel, y, constant)
    xy = _sums(kernel, x, y, constant)
    if biased:
        within = (xx.total + diagonal_x) / n**2 + (yy.total + diagonal_y) / m**2
    else:
        within = xx.total / (n * (n - 1)) + yy.total / (m * (m - 1))
    return KernelDistance(
        within - 2 * xy.total / (n * m), float(np.sqrt(sum(max(part, 0.0) for part in variance_parts(xx, yy, xy))))
    )


# ---------------------------------------------------------------------------------------------- variance


def variance_parts(xx: KernelSums, yy: KernelSums, xy: KernelSums) -> tuple[float, float]:
    """Variance of the unbiased squared MMD in two parts, from the sums of its matrices (`xx` and `yy` without diagonal).

    With f(x) = E k(x, X') - E k(x, Y) and g(y) alike, and k~ the kernel centred in both arguments:

        4/N Var f(X) + 4/M Var g(Y) + 2/(N (N-1)) Var k~(X, X') + 2/(M (M-1)) Var k~(Y, Y') + 4/(N M) Var k~(X, Y).

    The first two terms are the first part. Every moment is a mean over tuples of different samples, so that both parts are
    unbiased, and either can be below 0 by chance where it is small; counting that as 0, as the standard error does,
    makes it a fifth too large for equal distributions.
    """
    n, m = len(xy.rows), len(xy.columns)
    own_x, whole_x, cross_x = _own_moments(xx, xy.rows, m, xy.total)
    own_y, whole_y, cross_y = _own_moments(yy, xy.columns, n, xy.total)
    rows2, columns2, all2 = float(xy.rows @ xy.rows), float(xy.columns @ xy.columns), xy.squares
    apart = (xy.total**2 - rows2 - columns2 + all2) / (n * (n - 1) * m * (m - 1))
    of_x = (rows2 - all2) / (n * m * (m - 1)) - apart
    of_y = (columns2 - all2) / (n * (n - 1) * m) - apart
    of_both = all2 / (n * m) - apart
    first = 4 / n * (own_x + of_x - 2 * cross_x) + 4 / m * (own_y + of_y - 2 * cross_y)
    second = 2 * (whole_x - 2 * own_x) / (n * (n - 1)) + 2 * (whole_y - 2 * own_y) / (m * (m - 1))
    second += 4 * (of_both - of_x - of_y) / (n * m)
    return first, second


def _own_moments(own: KernelSums, across: Array, others: int, across_total: float) -> tuple[float, float, float]:
    """Of samples X: Var E[k(X, X') | X], Var k(X, X'), and the covariance of E[k(X, X') | X] with E[k(X, Y) | X].

    `own` are the sums within X, `across` (N,) the row sums of the kernel with the `others` samples of Y.
    """
    n, total = len(own.rows), own.total
    rows2 = float(own.rows @ own.rows)
    mean2 = (total**2 - 4 * rows2 + 2 * own.squares) / (n * (n - 1) * (n - 2) * (n - 3))
    of_rows = (rows2 - own.squares) / (n * (n - 1) * (n - 2)) - mean2
    of_pairs = own.squares / (n * (n - 1)) - mean2
    joint = float(own.rows @ across)
    product = (total * across_total - 2 * joint) / (n * (n - 1) * (n - 2) * others)
    return of_rows, of_pairs, joint / (n * (n - 1) * others) - product
