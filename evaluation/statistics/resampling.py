"""The bootstrap (Efron 1979) for statistics without a closed form. Vectorised, seeded by purpose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from evaluation.statistics.estimate import LEVEL, Estimate, no_interval
from launch.seeding import numpy_generator

CHUNK_CELLS = 4_000_000  # rows of a chunk times n: about 32 MB for each array


def bootstrap(
    statistic: Callable[..., NDArray[np.float64]],
    *arrays: ArrayLike,
    seed: int,
    purpose: str,
    resamples: int = 2000,
    level: float = LEVEL,
    bias_corrected: bool = False,
) -> Estimate:
    """Resample (n, ...) arrays together, with replacement, and take the percentiles of a statistic.

    `statistic` gets the arrays with a leading axis of resamples, (b, n, ...), and returns (b,). Resamples where it is
    not finite (a subset without spread) are left out; ValueError when that happens to more than one in twenty.

    `bias_corrected` moves the percentiles by twice the normal quantile of the share of resamples below the value
    (Efron 1981): right where resampling shifts a statistic as sampling did (an error or a distance that is above 0 by
    chance alone).
    """
    data = [np.asarray(a) for a in arrays]
    n = len(data[0])
    if any(len(a) != n for a in data) or n < 1:
        raise ValueError(f"bootstrap: arrays of lengths {[len(a) for a in data]}; need equal lengths of at least 1")
    value = float(statistic(*(a[None] for a in data))[0])
    if n < 2:
        return no_interval(value, n, level)
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
    tails = np.array([0.5 - level / 2, 0.5 + level / 2])
    low, high = np.quantile(finite, _corrected(tails, value, finite) if bias_corrected else tails)
    kind = "bias-corrected" if bias_corrected else "percentile"
    method = f"bootstrap {kind}, {resamples} resamples"
    return Estimate(value, n, float(finite.std(ddof=1)), float(low), float(high), level, method)


def _corrected(tails: NDArray[np.float64], value: float, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The percentiles to take: Phi(2 z0 + z), z0 the normal quantile of the share of draws below the value."""
    below = ((drawn < value).sum() + (drawn == value).sum() / 2 + 0.5) / (drawn.size + 1)
    return np.asarray(ndtr(2 * ndtri(below) + ndtri(tails)))


def resampled_counts(n: int, resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """How often each of n items is in each resample of size n: (resamples, n). A matrix product with it takes all sums."""
    return generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
