"""Percentile bootstrap (Efron 1979) for statistics without a closed form. Vectorised, seeded by purpose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics.intervals import LEVEL, Estimate
from launch.seeding import numpy_generator

CHUNK_CELLS = 4_000_000  # rows of a chunk times n: about 32 MB for each array


def bootstrap(
    statistic: Callable[..., NDArray[np.float64]],
    *arrays: ArrayLike,
    seed: int,
    purpose: str,
    resamples: int = 2000,
    level: float = LEVEL,
) -> Estimate:
    """Resample (n, ...) arrays together, with replacement, and take the percentiles of a statistic.

    `statistic` gets the arrays with a leading axis of resamples, (b, n, ...), and returns (b,). Resamples where it is
    not finite (a subset without spread) are left out; ValueError when that happens to more than one in twenty.
    """
    data = [np.asarray(a) for a in arrays]
    n = len(data[0])
    if any(len(a) != n for a in data) or n < 1:
        raise ValueError(f"bootstrap: arrays of lengths {[len(a) for a in data]}; need equal lengths of at least 1")
    value = float(statistic(*(a[None] for a in data))[0])
    if n < 2:
        return Estimate(value, n, None, None, None, level, f"none (n = {n})")
    generator = numpy_generator(seed, f"bootstrap {purpose}")
    draws: list[NDArray[np.float64]] = []
    rows = max(1, CHUNK_CELLS // n)
    for start in range(0, resamples, rows):
        index = generator.integers(0, n, size=(min(rows, resamples - start), n))
        draws.append(np.asarray(statistic(*(a[index] for a in data)), dtype=np.float64))
    drawn = np.concatenate(draws)
    finite = drawn[np.isfinite(drawn)]
    if finite.size < 0.95 * resamples:
        raise ValueError(f"bootstrap of {purpose}: undefined on {resamples - finite.size} of {resamples} resamples")
    low, high = np.quantile(finite, [0.5 - level / 2, 0.5 + level / 2])
    method = f"bootstrap percentile, {resamples} resamples"
    return Estimate(value, n, float(finite.std(ddof=1)), float(low), float(high), level, method)
