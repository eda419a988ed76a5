"""Sufficient statistics: what a process must keep of its samples so that estimates over all processes are exact.

Letters: N units, K numbers for each. A rank keeps `Moments` of its own samples, the ranks' are merged in the order of
the ranks, and every estimate that is a smooth function of means follows: means, ratios (bits per byte), correlations.
Counts (wins, ties, losses; successes, n) are sufficient for `wilson` and `win_rate_from_counts`, and merge by adding.
Samples that come in clusters are kept as one unit each, (sum, size): a cluster must not be divided over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics.estimate import LEVEL, Estimate, student_interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, means (K,) and centred scatter (K, K) = sum (x - mean)(x - mean)^T of the units seen."""

    count: int
    mean_K: Array
    scatter_KK: Array

    @classmethod
    def of(cls, *columns: ArrayLike) -> Moments:
        """The moments of K columns (N,) over the same units; N may be 0, for a rank that got no samples."""
        return cls.of_rows(np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1))

    @classmethod
    def of_rows(cls, rows_NK: ArrayLike) -> Moments:
        """The moments of N units of K numbers each, a batch of features, say; N may be 0."""
        x_NK = np.asarray(rows_NK, dtype=np.float64)
        if x_NK.ndim != 2:
            raise ValueError(f"Moments: expected vectors of one length, got shape {x_NK.shape}")
        if not np.isfinite(x_NK).all():
            bad = int(np.flatnonzero(~np.isfinite(x_NK).all(axis=1))[0])
            raise ValueError(f"Moments: unit {bad} holds NaN or infinity; leave it out and count it")
        if len(x_NK) == 0:
            return cls(0, np.zeros(x_NK.shape[1]), np.zeros((x_NK.shape[1],) * 2))
        mean_K = x_NK.mean(axis=0)
        centred = x_NK - mean_K
        return cls(len(x_NK), mean_K, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together: see `merge_moments`."""
        return merge_moments([self, other])

    @property
    def covariance_KK(self) -> Array:
        """The sample covariance of one unit, divided by N - 1; zeros below two units."""
        return self.scatter_KK / max(1, self.count - 1)


def merge_moments(parts: Iterable[Moments]) -> Moments:
    """The moments of all parts together: exact, and in their order, so that the same ranks give the same bits.

    n = sum n_p, m = sum n_p m_p / n, M = sum (M_p + n_p (m_p - m)(m_p - m)^T) (Chan, Golub and LeVeque 1979). Centred sums
    do not cancel: the uncentred second moment loses 1e-5 where |mean| / sd is 1e5.
    """
    kept = list(parts)
    if len({len(part.mean_K) for part in kept}) != 1:
        raise ValueError(f"moments of {', '.join(str(len(p.mean_K)) for p in kept) or 'no'} numbers cannot be merged")
    count = sum(part.count for part in kept)
    if count == 0:
        return kept[0]
    counts_P, means_PK = np.array([p.count for p in kept], dtype=np.float64), np.stack([p.mean_K for p in kept])
    mean_K = kept[0].mean_K + (counts_P / count) @ (means_PK - kept[0].mean_K)  # from near by: large means keep digits
    shifts_PK = (means_PK - mean_K) * np.sqrt(counts_P)[:, None]
    scatter_KK = shifts_PK.T @ shifts_PK
    for part in kept:
        scatter_KK += part.scatter_KK
    return Moments(count, mean_K, scatter_KK)


def _checked(moments: Moments, width: int | None = None) -> None:
    if moments.count < 1:
        raise ValueError("moments: no unit was counted, so that there is nothing to estimate")
    if width is not None and moments.mean_K.size != width:
        raise ValueError(f"moments: of {moments.mean_K.size} numbers, where {width} are needed")


def mean_from_moments(moments: Moments, level: float = LEVEL) -> Estimate:
    """The mean of K = 1 number over N independent units: s / sqrt(N), Student's t with N - 1 degrees."""
    _checked(moments, 1)
    stderr = math.sqrt(float(moments.covariance_KK[0, 0]) / moments.count)
    return student_interval(float(moments.mean_K[0]), stderr, moments.count, level, "student-t", moments.count - 1)


def ratio_from_moments(moments: Moments, level: float = LEVEL, log: bool = False) -> Estimate:
    """sum / sum of K = 2 numbers (numerator, denominator) over N independent units; see `intervals.ratio`."""
    _checked(moments, 2)
    (top, bottom), n = moments.mean_K, moments.count
    if bottom <= 0:
        raise ValueError("denominators: must be non-negative and not all zero")
    value = float(top / bottom)
    gradient = np.array([1.0, -value]) / bottom
    stderr = math.sqrt(max(0.0, float(gradient @ moments.covariance_KK @ gradient) / n))
    plain = student_interval(value, stderr, n, level, "delta", n - 1)
    if not log or plain.low is None or plain.high is None:
        return plain
    if value <= 0:
        raise ValueError(f"ratio: {value} is not positive, so that it has no interval in the logarithm")
    factor = math.exp((plain.high - value) / value)
    return replace(plain, low=value / factor, high=value * factor, method="delta, log scale")


def delta_method(function: Callable[[Array], float], moments: Moments, level: float = LEVEL) -> Estimate:
    """A smooth function of K means over N independent units: F1, a correlation, kappa, a geometric mean.

    stderr^2 = g' S g / N with g the gradient of `function` at the means (central differences, each step a thousandth of
    the mean's own standard error) and S the covariance of one unit; Student's t with N - 1 degrees. It is the first
    order: where the gradient vanishes (a correlation of 1, say) it knows nothing of the error.
    """
    _checked(moments)
    n = moments.count
    errors_K = np.sqrt(np.diag(moments.covariance_KK) / n)
    gradient_K = np.zeros_like(errors_K)
    for k in np.flatnonzero(errors_K):
        step = np.zeros_like(errors_K)
        step[k] = errors_K[k] / 1000
        ahead, behind = function(moments.mean_K + step), function(moments.mean_K - step)
        gradient_K[k] = (ahead - behind) / (2 * step[k])
    stderr = math.sqrt(max(0.0, float(gradient_K @ moments.covariance_KK @ gradient_K) / n))
    return student_interval(float(function(moments.mean_K)), stderr, n, level, "delta", n - 1)
