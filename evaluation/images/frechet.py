"""The Fréchet distance between two sets of feature vectors, without a matrix square root.

Letters: N samples, D feature dimensions. Everything is float64. The trace term is a nuclear norm:

    tr (S1 S2)^(1/2) = || F1^T F2 ||_*   for any factors  S1 = F1 F1^T,  S2 = F2 F2^T,

so a Cholesky factor serves where the covariance has full rank, the centred samples themselves serve where there
are fewer samples than dimensions, and the result is real whatever the rounding. The usual route (eigenvalues of
the unsymmetric product S1 S2, Heusel et al. 2017, arXiv 1706.08500) gives small negative or complex eigenvalues.

The norm is the sum of the square roots of the eigenvalues of the smaller Gram matrix of F1^T F2, which is symmetric:
a quarter of the work of the unsymmetric problem. Squaring costs digits of small singular values; how many is bounded
from the eigenvalues themselves, and where the bound is too large the singular values are computed instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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


def covariance_factor(covariance: ArrayLike) -> Array:
    """F (D, K) with F F^T = covariance; K is D, or the rank where the matrix is singular."""
    matrix = np.asarray(covariance, dtype=np.float64)
    try:
        return np.linalg.cholesky(matrix).astype(np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix)
        keep = values > values.max(initial=0.0) * len(values) * np.finfo(np.float64).eps
        return vectors[:, keep] * np.sqrt(values[keep])


ROUNDING = 1e-10
"""Largest relative error of the nuclear norm that the squared route may make; above it singular values are computed."""


def nuclear_norm(matrix: ArrayLike) -> float:
    """Sum of the singular values of a matrix (K1, K2), to a relative error of ROUNDING or better.

    An eigenvalue L of the Gram matrix errs by about d = eps * largest, its root by d / (2 sqrt(L)), or sqrt(d) near 0.
    """
    product = np.asarray(matrix, dtype=np.float64)
    if product.size == 0:
        return 0.0
    gram = product @ product.T if len(product) <= product.shape[1] else product.T @ product
    values = np.maximum(np.linalg.eigvalsh(gram), 0.0)
    roots = np.sqrt(values)
    error = values[-1] * 4 * np.finfo(np.float64).eps
    bound = float((error / (2 * np.maximum(roots, 0.5 * np.sqrt(error) + np.finfo(np.float64).tiny))).sum())
    if bound <= ROUNDING * float(roots.sum()):
        return float(roots.sum())
    return float(np.linalg.svd(product, compute_uv=False).sum())


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution by its mean (D,) and a factor F (D, K) of its covariance F F^T."""

    mean: Array
    factor: Array

    @classmethod
    def of_features(cls, features: ArrayLike, name: str = "features") -> Gaussian:
        """From features (N, D), N >= 2; where N <= D the centred samples are the factor, exact and of rank N - 1."""
        matrix = as_features(features, name)
        if len(matrix) < 2:
            raise UserError(f"{name} has {len(matrix)} images; a Fréchet distance needs at least two in each")
        mean = matrix.mean(axis=0)
        centred = (matrix - mean) / np.sqrt(len(matrix) - 1)
        wide = len(matrix) <= matrix.shape[1]
        return cls(mean, centred.T if wide else covariance_factor(centred.T @ centred))

    @classmethod
    def of_statistics(cls, statistics: FeatureStatistics) -> Gaussian:
        """From streamed statistics (sample covariance, N - 1)."""
        return cls(statistics.mean, covariance_factor(statistics.covariance))

    def distance(self, other: Gaussian) -> float:
        """The squared Fréchet distance to another distribution, clamped at zero."""
        if len(self.mean) != len(other.mean):
            raise UserError(
                f"the sets have {len(self.mean)} and {len(other.mean)} dimensions; use one extractor for both"
            )
        overlap = nuclear_norm(self.factor.T @ other.factor)
        difference = self.mean - other.mean
        total = difference @ difference + np.sum(self.factor**2) + np.sum(other.factor**2) - 2 * overlap
        return max(float(total), 0.0)  # never negative in truth; rounding of equal sets can be, by about 1e-15 tr S


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
    return Gaussian(m1, covariance_factor(s1)).distance(Gaussian(m2, covariance_factor(s2)))


def frechet_distance_from_statistics(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """`frechet_distance` of two sets given by their streamed statistics (sample covariances, N - 1)."""
    return Gaussian.of_statistics(first).distance(Gaussian.of_statistics(second))


def frechet_distance_from_features(first: ArrayLike, second: ArrayLike) -> float:
    """`frechet_distance` of two sets of features (N1, D) and (N2, D), each with N >= 2, also where N < D."""
    return Gaussian.of_features(first, "the first set").distance(Gaussian.of_features(second, "the second set"))
