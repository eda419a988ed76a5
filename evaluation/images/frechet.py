"""The Fréchet distance between two sets of feature vectors, without a matrix square root.

Letters: N samples, D feature dimensions. Everything is float64. The trace term is a nuclear norm:

    tr (S1 S2)^(1/2) = || F1^T F2 ||_*   for any factors  S1 = F1 F1^T,  S2 = F2 F2^T,

so a Cholesky factor serves where the covariance has full rank, the centred samples themselves serve where there
are fewer samples than dimensions, and the result is real whatever the rounding. The usual route (eigenvalues of
the unsymmetric product S1 S2, Heusel et al. 2017, arXiv 1706.08500) gives small negative or complex eigenvalues.
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

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both sets together: exact, in any order (Chan, Golub & LeVeque 1979).

        Centred sums do not cancel: the uncentred second moment loses 1e-5 where |mean| / sd is 1e5.
        """
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = np.outer(delta, delta) * (self.count * other.count / count)
        return FeatureStatistics(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Array:
        """The sample covariance (D, D), divided by N - 1."""
        if self.count < 2:
            raise UserError("a covariance needs at least two images; there is one")
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


def _from_factors(mean1: Array, factor1: Array, mean2: Array, factor2: Array) -> float:
    """The squared distance of N(mean1, F1 F1^T) and N(mean2, F2 F2^T), clamped at zero."""
    product = factor1.T @ factor2
    overlap = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    difference = mean1 - mean2
    total = difference @ difference + np.sum(factor1**2) + np.sum(factor2**2) - 2 * overlap
    return max(float(total), 0.0)  # the truth is never negative; rounding of equal sets can be, by about 1e-15 tr S


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
    return _from_factors(m1, covariance_factor(s1), m2, covariance_factor(s2))


def frechet_distance_from_statistics(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """`frechet_distance` of two sets given by their streamed statistics (sample covariances, N - 1)."""
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def frechet_distance_from_features(first: ArrayLike, second: ArrayLike) -> float:
    """`frechet_distance` of two sets of features (N1, D) and (N2, D), each with N >= 2, also where N < D."""
    means, factors = [], []
    for name, features in (("the first set", first), ("the second set", second)):
        matrix = as_features(features, name)
        if len(matrix) < 2:
            raise UserError(f"{name} has {len(matrix)} images; a Fréchet distance needs at least two in each")
        mean = matrix.mean(axis=0)
        centred = (matrix - mean) / np.sqrt(len(matrix) - 1)
        wide = len(matrix) <= matrix.shape[1]
        means.append(mean)
        factors.append(centred.T if wide else covariance_factor(centred.T @ centred))
    if len(means[0]) != len(means[1]):
        raise UserError(f"the sets have {len(means[0])} and {len(means[1])} dimensions; use one extractor for both")
    return _from_factors(means[0], factors[0], means[1], factors[1])
