"""A sum of absolute values of means that are known with normal errors, sum |mu_b|: what it is, without its upward bias. Pure.

The plain estimate T = sum |g_b| of measured g is too large: errors around 0 do not cancel once their signs are gone. Here
the distribution of T is simulated for each possible value of the sum, at the means nearest to the measured ones that have
that sum (hybrid resampling: Chuang and Lai 2000). The interval holds the sums for which T is not in the tails of its
distribution, and the estimate is the one for which T is the median: unlike T it is as often too small as too large.
Letters: B means, R draws.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.estimate import LEVEL, Estimate, no_interval
from launch.seeding import numpy_generator

Array = NDArray[np.float64]

DRAWS = 4000
HALVINGS = 24
METHOD = "hybrid resampling of a sum of absolute values"


def absolute_sum(
    means_B: Array, covariance_BB: Array, n: int, seed: int, level: float = LEVEL, purpose: str = "absolute sum"
) -> Estimate:
    """The estimate of sum |mu_b| and its interval, from measured means and the covariance of their errors.

    `stderr` is the spread of T at the estimate. The lower limit is 0 where errors alone may give as large a T.
    """
    measured, variance_B = float(np.abs(means_B).sum()), np.diag(covariance_BB)
    if not (variance_B > 0).any():
        return no_interval(measured, n, level, "no spread")
    normal_BR = _root(covariance_BB) @ numpy_generator(seed, purpose).standard_normal((len(means_B), DRAWS // 2))
    errors_BR = np.concatenate([normal_BR, -normal_BR], axis=1)

    def totals_R(pull: float) -> Array:
        return np.asarray(np.abs(nearest(means_B, variance_B, pull)[:, None] + errors_BR).sum(axis=0))

    def pull_where(share: float) -> float:
        """The pull for which T lies at this share of its distribution."""
        return _pull_at(lambda pull: float((totals_R(pull) <= measured).mean()) - share, means_B, variance_B)

    pulls = [pull_where(share) for share in (0.5 + level / 2, 0.5, 0.5 - level / 2)]
    low, value, high = (float(np.abs(nearest(means_B, variance_B, pull)).sum()) for pull in pulls)
    return Estimate(value, n, float(totals_R(pulls[1]).std(ddof=1)), low, high, level, METHOD)


def nearest(means_B: Array, variance_B: Array, pull: float) -> Array:
    """The means nearest to the measured ones, in their standard errors, for one value of the sum of their sizes.

    The Lagrange multiplier `pull` stands for that value: each size is moved by pull times its variance towards 0 (away
    from it where `pull` is negative) and stops there, as in soft thresholding.
    """
    return np.asarray(np.sign(means_B) * np.maximum(np.abs(means_B) - pull * variance_B, 0.0))


def _pull_at(excess: Callable[[float], float], means_B: Array, variance_B: Array) -> float:
    """Where a function that rises with the pull meets 0, or the pull at which all means are 0, if it stays below."""
    seen = variance_B > 0
    right = float((np.abs(means_B[seen]) / variance_B[seen]).max())
    if excess(right) <= 0:
        return right
    left, step = 0.0, 1 / float(np.sqrt(variance_B.sum()))
    while excess(left) > 0:
        left, step = left - step, 2 * step
    for _ in range(HALVINGS):
        middle = (left + right) / 2
        left, right = (left, middle) if excess(middle) > 0 else (middle, right)
    return (left + right) / 2


def _root(covariance_BB: Array) -> Array:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(covariance_BB)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)
