"""The Fréchet distance between two sets of feature vectors, without a matrix square root.

Letters: N samples, D feature dimensions. Everything is float64. The trace term is a nuclear norm:

    tr (S1 S2)^(1/2) = || F1^T F2 ||_*   for any factors  S1 = F1 F1^T,  S2 = F2 F2^T,

so a Cholesky factor serves where the covariance has full rank, the centred samples themselves serve where there
are fewer samples than dimensions, and the result is real whatever the rounding. The usual route (eigenvalues of
the unsymmetric product S1 S2, Heusel et al. 2017, arXiv 1706.08500) gives small negative or complex eigenvalues.

The norm is the sum of the square roots of the eigenvalues of F1^T S2 F1, which is symmetric: a fraction of the work of
the unsymmetric problem. Squaring costs digits of small singular values; how many is estimated from the eigenvalues, and
where it is too many the singular values are computed instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics.moments import Moments
from launch.errors import UserError

Array = NDArray[np.float64]


def as_features(features: ArrayLike, name: str = "features") -> Array:
    """Features as float64 (N, D); UserError when they are not a matrix or hold NaN or infinity."""
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2:
        raise UserError(f"{name} must be a matrix (samples, dimensions), not an array of shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise UserError(f"{name}: row {row} holds NaN or infinity; look at that image and at the extractor's weights")
    return matrix


ROUNDING = 1e-10
"""Relative error of the trace term that eigenvalues of a square may make; above it singular values are computed."""


class Gaussian:
    """A normal distribution: its mean (D,), and its covariance (D, D) or, where it has a lower rank K, a factor (D, K)."""

    def __init__(self, mean: Array, covariance: Array | None = None, factor: Array | None = None) -> None:
        self.mean, self.covariance, self._given = mean, covariance, factor

    @classmethod
    def of_features(cls, features: ArrayLike, name: str = "features") -> Gaussian:
        """From features (N, D), N >= 2; where N <= D the centred samples are the factor, turned into N - 1 vectors."""
        matrix = as_features(features, name)
        if len(matrix) < 2:
            raise UserError(f"{name} has {len(matrix)} images; a Fréchet distance needs at least two in each")
        mean = matrix.mean(axis=0)
        centred = (matrix - mean) / np.sqrt(len(matrix) - 1)
        if len(matrix) <= matrix.shape[1]:
            return cls(mean, factor=_without_null(centred).T)
        return cls(mean, centred.T @ centred)

    @classmethod
    def of_moments(cls, moments: Moments) -> Gaussian:
        """From streamed moments (sample covariance, N - 1) of at least two images."""
        if moments.count < 2:
            raise UserError(f"a covariance needs at least two images; there are {moments.count}; give more")
        return cls(moments.mean_K, moments.covariance_KK)

    @property
    def width(self) -> int:
        """How many columns the factor has, at most."""
        return len(self.mean) if self.covariance is not None else self.factor.shape[1]

    @cached_property
    def cholesky(self) -> Array | None:
        """The lower triangular factor (D, D) of the covariance; None where it is singular, or not held."""
        if self.covariance is None:
            return None
        # .T: in the order that LAPACK works in
        lower, fault = scipy.linalg.lapack.dpotrf(self.covariance.T, lower=1, clean=1)
        return None if fault else lower

    @cached_property
    def factor(self) -> Array:
        """F (D, K) with F F^T the covariance; K is D, or the rank where that is lower."""
        if self.covariance is None:
            assert self._given is not None
            return self._given
        if self.cholesky is not None:
            return self.cholesky
        values, vectors = np.linalg.eigh(self.covariance)
        keep = values > values.max(initial=0.0) * len(values) * np.finfo(np.float64).eps
        return vectors[:, keep] * np.sqrt(values[keep])

    @property
    def total_variance(self) -> float:
        """The trace of the covariance."""
        return float(np.sum(self.factor**2) if self.covariance is None else np.trace(self.covariance))

    def coordinates(self, centred: Array, axes: Array) -> Array:
        """Z = X U (N, J) with X F^T = centred: the images (N, D) that this was made of, along axes U (K, J) of the factor."""
        if self.covariance is None:  # centred / sqrt(N - 1) is the reflection of the factor: nothing to solve
            return _reflect(np.pad(axes, ((1, 0), (0, 0)))) * np.sqrt(len(centred) - 1)
        if self.cholesky is not None:
            return centred @ scipy.linalg.solve_triangular(self.cholesky, axes, trans="T", lower=True)
        return centred @ (self.factor / (self.factor**2).sum(axis=0) @ axes)  # columns at right angles

    def distance(self, other: Gaussian) -> float:
        """The squared Fréchet distance to another distribution, clamped at zero. Of two covariances, `other`'s is factored."""
        return compare(self, other).distance


@dataclass(frozen=True)
class Comparison:
    """Two distributions by one factorisation: F^T S F = U diag(s^2) U^T, F the factor of `outer` and S of `inner`.

    `trace` is tr (S1 S2)^(1/2), `distance` the squared Fréchet distance. `roots` (K,) is s; of one below `lost` nothing
    but rounding may be left. `axes` (K, K) is U where it was asked for.
    """

    outer: Gaussian
    inner: Gaussian
    trace: float
    distance: float
    roots: Array
    lost: float
    axes: Array | None


def compare(first: Gaussian, second: Gaussian, axes: bool = False) -> Comparison:
    """The distance of two distributions, the trace term to a relative error of about ROUNDING or better.

    The eigenvalues computed are those of G + E with |E| about eps |G| (Frobenius norms, n dimensions). To first order
    that moves the sum of roots by tr (G^(-1/2) E) / 2: at most |G^(-1/2)| |E| / 2, and an n-th of it where E has no
    preference; n^(-1/2) of it is counted. An eigenvalue no larger than |E| may have lost its root, sqrt |E|.
    """
    if len(first.mean) != len(second.mean):
        raise UserError(
            f"the sets have {len(first.mean)} and {len(second.mean)} dimensions; use one extractor for both"
        )
    outer, inner = sorted((second, first), key=lambda side: side.width)  # the narrower makes the smaller problem
    values, vectors = _eigen(_gram(outer, inner), axes)
    roots, error = np.sqrt(values), 4 * np.finfo(np.float64).eps * float(np.linalg.norm(values))
    large = values > error
    spread = error * float(np.sqrt((1 / values[large]).sum() / max(1, len(values)))) / 2
    trace, lost = float(roots.sum()), float(np.sqrt(error))
    if spread + float((~large).sum()) * lost > ROUNDING * trace:
        trace = float(np.linalg.svd(outer.factor.T @ inner.factor, compute_uv=False).sum())
    shift = first.mean - second.mean
    # never negative in truth; rounding of equal sets can be, by about 1e-15 tr S
    distance = max(0.0, float(shift @ shift) + first.total_variance + second.total_variance - 2 * trace)
    return Comparison(outer, inner, trace, distance, roots, lost, vectors)


def _eigen(gram: Array, axes: bool) -> tuple[Array, Array | None]:
    """Eigenvalues (K,) of a square, so never below 0, and eigenvectors (K, K) where they are asked for."""
    if gram.size == 0:  # constant images
        return np.zeros(0), gram if axes else None
    values, vectors = np.linalg.eigh(gram) if axes else (np.linalg.eigvalsh(gram), None)
    return np.maximum(values, 0.0), vectors


def _gram(outer: Gaussian, inner: Gaussian) -> Array:
    """F^T S F (K, K), F the factor of `outer`, which is no wider, and S the covariance of `inner`; its lower triangle counts."""
    if inner.covariance is None:
        product = outer.factor.T @ inner.factor
        return product @ product.T
    if outer.covariance is None or outer.cholesky is None:
        return outer.factor.T @ inner.covariance @ outer.factor
    # L^T S L by LAPACK's routine for it, a quarter of the work of two products
    found, fault = scipy.linalg.lapack.dsygst(inner.covariance.T, outer.cholesky, itype=2, lower=1)
    assert fault == 0
    return found


def _without_null(centred: Array) -> Array:
    """Rows (N - 1, D) with the same sum of outer products as centred rows (N, D), which sum to zero.

    A reflection makes the first row zero, which is left out. Else every Gram matrix would have an eigenvalue 0, whose
    root keeps half of the digits.
    """
    return _reflect(centred)[1:]


def _reflect(rows: Array) -> Array:
    """Householder's reflection of rows (N, D) that takes (1, ..., 1) / sqrt(N) to the first axis, and back."""
    normal = np.full(len(rows), 1 / np.sqrt(len(rows)))
    normal[0] += 1.0
    return rows - np.outer(normal, normal @ rows) * (2 / (normal @ normal))


def frechet_distance(mean1: ArrayLike, covariance1: ArrayLike, mean2: ArrayLike, covariance2: ArrayLike) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).

    Means (D,), covariances (D, D), symmetric and positive semi-definite; the result is in squared feature units,
    never negative. Dowson & Landau 1982; as FID in Heusel et al. 2017.
    """
    m1, m2 = np.asarray(mean1, dtype=np.float64), np.asarray(mean2, dtype=np.float64)
    s1, s2 = np.asarray(covariance1, dtype=np.float64), np.asarray(covariance2, dtype=np.float64)
    dimensions = len(m1)
    for name, value, shape in (
        ("mean2", m2, (dimensions,)),
        ("covariance1", s1, (dimensions, dimensions)),
        ("covariance2", s2, (dimensions, dimensions)),
    ):
        if value.shape != shape:
            raise UserError(f"{name} has shape {value.shape}, not {shape}; use one extractor for both sets")
    return Gaussian(m1, s1).distance(Gaussian(m2, s2))


def frechet_distance_from_moments(first: Moments, second: Moments) -> float:
    """`frechet_distance` of two sets given by their streamed moments (sample covariances, N - 1)."""
    return Gaussian.of_moments(first).distance(Gaussian.of_moments(second))


def frechet_distance_from_features(first: ArrayLike, second: ArrayLike) -> float:
    """`frechet_distance` of two sets of features (N1, D) and (N2, D), each with N >= 2, also where N < D."""
    return Gaussian.of_features(first, "the first set").distance(Gaussian.of_features(second, "the second set"))
