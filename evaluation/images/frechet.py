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


@dataclass(frozen=True)
class FeatureStatistics:
    """Count, mean (D,) and centred scatter (D, D) = sum (x - mean)(x - mean)^T of a stream of features."""

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features: ArrayLike) -> FeatureStatistics:
        """The statistics of one batch of features (N, D), N >= 1."""
        matrix = as_features(features)
        if len(matrix) == 0:
            raise UserError("features: there are no samples; give at least two images")
        mean = matrix.mean(axis=0)
        centred = matrix - mean
        return cls(len(matrix), mean, centred.T @ centred)

    @classmethod
    def empty(cls, dimensions: int) -> FeatureStatistics:
        """The statistics of no samples yet: where a stream begins."""
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both sets together: exact, in any order (Chan, Golub & LeVeque 1979).

        Centred sums do not cancel: the uncentred second moment loses 1e-5 where |mean| / sd is 1e5.
        """
        if len(self.mean) != len(other.mean):
            raise UserError(
                f"features have {len(self.mean)} and {len(other.mean)} dimensions; use one extractor for all of a set"
            )
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = np.outer(delta, delta) * (self.count * other.count / count)
        return FeatureStatistics(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Array:
        """The sample covariance (D, D), divided by N - 1."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least two images; there are {self.count}; give more")
        return self.scatter / (self.count - 1)


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
    def of_statistics(cls, statistics: FeatureStatistics) -> Gaussian:
        """From streamed statistics (sample covariance, N - 1)."""
        return cls(statistics.mean, statistics.covariance)

    @cached_property
    def cholesky(self) -> Array | None:
        """The lower triangular factor (D, D) of the covariance; None where it is singular, or not held."""
        if self.covariance is None:
            return None
        lower, fault = scipy.linalg.lapack.dpotrf(
            self.covariance.T, lower=1, clean=1
        )  # .T: in the order that it works in
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

    def distance(self, other: Gaussian) -> float:
        """The squared Fréchet distance to another distribution, clamped at zero. Of two covariances, `other`'s is factored."""
        if len(self.mean) != len(other.mean):
            raise UserError(
                f"the sets have {len(self.mean)} and {len(other.mean)} dimensions; use one extractor for both"
            )
        difference = self.mean - other.mean
        total = difference @ difference + self.total_variance + other.total_variance - 2 * trace_term(self, other)
        return max(float(total), 0.0)  # never negative in truth; rounding of equal sets can be, by about 1e-15 tr S


def trace_term(first: Gaussian, second: Gaussian) -> float:
    """tr (S1 S2)^(1/2), to a relative error of about ROUNDING or better.

    The eigenvalues computed are those of G + E with |E| about eps |G| (Frobenius norms, n dimensions). To first order
    that moves the sum of roots by tr (G^(-1/2) E) / 2: at most |G^(-1/2)| |E| / 2, and an n-th of it where E has no
    preference; n^(-1/2) of it is counted. An eigenvalue no larger than |E| may have lost its root, sqrt |E|.
    """
    gram = _gram(first, second)
    if gram.size == 0:
        return 0.0
    values = np.maximum(np.linalg.eigvalsh(gram), 0.0)
    total, error = float(np.sqrt(values).sum()), 4 * np.finfo(np.float64).eps * float(np.linalg.norm(values))
    large = values > error
    spread = error * float(np.sqrt((1 / values[large]).sum() / len(values))) / 2
    if spread + float((~large).sum() * np.sqrt(error)) <= ROUNDING * total:
        return total
    return float(np.linalg.svd(first.factor.T @ second.factor, compute_uv=False).sum())


def _gram(first: Gaussian, second: Gaussian) -> Array:
    """A symmetric matrix with the squared singular values of F1^T F2 as eigenvalues; its lower triangle counts."""
    if first.covariance is None and second.covariance is None:
        product = first.factor.T @ second.factor
        return product @ product.T if len(product) <= product.shape[1] else product.T @ product
    inner, outer = (second, first) if first.covariance is None else (first, second)
    assert inner.covariance is not None
    if outer.cholesky is None:
        return outer.factor.T @ inner.covariance @ outer.factor
    # L^T S L by LAPACK's routine for it, a quarter of the work of two products
    found, fault = scipy.linalg.lapack.dsygst(inner.covariance.T, outer.cholesky, itype=2, lower=1)
    assert fault == 0
    return found


def _without_null(centred: Array) -> Array:
    """Rows (N - 1, D) with the same sum of outer products as centred rows (N, D), which sum to zero.

    A Householder reflection takes (1, ..., 1) / sqrt(N) to the first axis, so that the first row becomes zero and is left
    out. Else every Gram matrix would have an eigenvalue 0, whose root keeps half of the digits.
    """
    normal = np.full(len(centred), 1 / np.sqrt(len(centred)))
    normal[0] += 1.0
    return (centred - np.outer(normal, normal @ centred) * (2 / (normal @ normal)))[1:]


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


def frechet_distance_from_statistics(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """`frechet_distance` of two sets given by their streamed statistics (sample covariances, N - 1)."""
    return Gaussian.of_statistics(first).distance(Gaussian.of_statistics(second))


def frechet_distance_from_features(first: ArrayLike, second: ArrayLike) -> float:
    """`frechet_distance` of two sets of features (N1, D) and (N2, D), each with N >= 2, also where N < D."""
    return Gaussian.of_features(first, "the first set").distance(Gaussian.of_features(second, "the second set"))
