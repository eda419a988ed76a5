"""The delete-a-block jackknife (Quenouille 1949, Tukey 1958), for statistics of one or of several independent sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from evaluation.statistics.estimate import LEVEL, Estimate, as_vector, no_interval, student_interval
from launch.seeding import permutation


def block_ids(count: int, blocks: int, seed: int, purpose: str) -> np.ndarray:
    """The block of each unit (N,), sizes equal to within one: random, since files often come sorted by class."""
    ids = np.empty(count, dtype=np.int64)
    ids[permutation(count, seed, purpose)] = np.arange(count) * blocks // count
    return ids


def jackknife(
    value: float, n: int, *left_out: ArrayLike, level: float = LEVEL, log: bool = False, method: str = "jackknife"
) -> Estimate:
    """A statistic with the interval that its values without one block each give; one (B,) vector per independent set.

    The variance is the sum over the sets of (B - 1)/B sum (v - mean v)^2, with Welch-Satterthwaite's degrees of freedom.
    With `log` the interval is symmetric in the logarithm, where all values are positive. The order of the blocks must
    not matter to the statistic, which must be smooth: the jackknife of a median or of an order statistic is wrong.
    """
    sets = [as_vector(v, "left_out") for v in left_out]
    if not sets or min(v.size for v in sets) < 2:
        return no_interval(value, n, level)
    log = log and min(value, *(float(v.min()) for v in sets)) > 0
    scale = [np.log(v) for v in sets] if log else sets
    return combine_variances(
        value, n, [(v.size - 1) * float(v.var()) for v in scale], [v.size - 1 for v in scale], level, log, method
    )


def combine_variances(
    value: float,
    n: int,
    variances: Sequence[float],
    degrees: Sequence[float],
    level: float = LEVEL,
    log: bool = False,
    method: str = "delta",
) -> Estimate:
    """Student's interval from variances of independent origin, each with its degrees of freedom (Satterthwaite 1946).

    With `log` the variances are those of the logarithm of `value`, in which the interval is symmetric.
    """
    total = float(sum(variances))
    freedom = total**2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True)) if total > 0 else 1.0
    error = float(np.sqrt(total))
    if not log:
        return student_interval(value, error, n, level, method, freedom)
    found = student_interval(float(np.log(value)), error, n, level, f"{method}, log scale", freedom)
    if found.low is None or found.high is None:
        return no_interval(value, n, level)
    return Estimate(value, n, value * error, float(np.exp(found.low)), float(np.exp(found.high)), level, found.method)
