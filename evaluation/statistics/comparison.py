"""Comparisons: paired differences and tests, corrections for many of them, and rankings that respect overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evaluation.statistics.intervals import LEVEL, Estimate, as_vector, clustered_mean, mean
from launch.seeding import numpy_generator


@dataclass(frozen=True)
class Difference:
    """A difference (ours minus theirs) on the same items, and the two-sided p-value of `test` for zero difference."""

    estimate: Estimate
    p_value: float | None
    test: str


def paired_difference(
    ours: ArrayLike, theirs: ArrayLike, level: float = LEVEL, clusters: Sequence[object] | None = None
) -> Difference:
    """Mean of ours - theirs over (n,) shared items, paired t-test; items of one cluster count as one unit.

    Pairing removes the spread between items, which unpaired tests on the same items wrongly keep. With equal scores
    on every item the p-value is 1; with one constant non-zero difference it is 0.
    """
    a, b = as_vector(ours, "ours"), as_vector(theirs, "theirs")
    if a.size != b.size:
        raise ValueError(f"paired_difference: {a.size} of ours, {b.size} of theirs; give the same items")
    estimate = mean(a - b, level) if clusters is None else clustered_mean(a - b, clusters, level)
    test = "paired t" if clusters is None else "paired t, clustered"
    if estimate.stderr is None:
        return Difference(estimate, None, test)
    if estimate.stderr == 0.0:
        return Difference(estimate, 1.0 if estimate.value == 0 else 0.0, test)
    p_value = 2 * stats.t.sf(abs(estimate.value) / estimate.stderr, estimate.n - 1)
    return Difference(estimate, float(p_value), test)


def mcnemar_exact(only_ours: int, only_theirs: int) -> float:
    """Two-sided exact McNemar p-value from the discordant counts: binomial(b + c, 1/2). 1 without discordant items."""
    if only_ours < 0 or only_theirs < 0:
        raise ValueError(f"mcnemar_exact: counts {only_ours}, {only_theirs} must not be negative")
    discordant = only_ours + only_theirs
    return float(stats.binomtest(only_ours, discordant).pvalue) if discordant else 1.0


def sign_flip_test(differences: ArrayLike, seed: int, purpose: str, resamples: int = 10_000) -> float:
    """Two-sided permutation p-value for mean zero: signs of (n,) paired differences are exchangeable under no effect.

    All 2^n signs when they are no more than `resamples`; else random ones with the (hits + 1) / (resamples + 1) of
    Phipson and Smyth (2010), which is never zero.
    """
    x = as_vector(differences, "differences")
    observed = abs(float(x.sum()))
    tolerance = 1e-12 * float(np.abs(x).sum())
    if 2**x.size <= resamples:
        bits = np.arange(2**x.size)[:, None] >> np.arange(x.size) & 1
        return float((np.abs((1 - 2 * bits) @ x) >= observed - tolerance).mean())
    generator, hits, rows = numpy_generator(seed, f"sign flips {purpose}"), 0, max(1, 4_000_000 // x.size)
    for start in range(0, resamples, rows):
        signs = 1 - 2 * generator.integers(0, 2, size=(min(rows, resamples - start), x.size), dtype=np.int8)
        hits += int((np.abs(signs @ x) >= observed - tolerance).sum())
    return (hits + 1) / (resamples + 1)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's (1979) adjusted p-values (m,): reject those <= alpha, and any false rejection has probability <= alpha."""
    p = _p_vector(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return _unsort(np.minimum(adjusted, 1.0), order)


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """Benjamini and Hochberg's (1995) adjusted p-values (m,): reject those <= q for a false discovery rate <= q."""
    p = _p_vector(p_values)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * p.size / np.arange(1, p.size + 1)
    adjusted = np.minimum.accumulate(scaled[::-1])[::-1]
    return _unsort(np.minimum(adjusted, 1.0), order)


def _p_vector(p_values: ArrayLike) -> NDArray[np.float64]:
    p = as_vector(p_values, "p_values")
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p_values: must lie between 0 and 1")
    return p


def _unsort(ordered: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.float64]:
    result = np.empty_like(ordered)
    result[order] = ordered
    return result


def significance_groups(lows: ArrayLike, highs: ArrayLike, higher_is_better: bool = True) -> list[int]:
    """Rank groups of m entries from their intervals: 1 is the best, and entries whose intervals overlap share a group.

    Groups are the connected components of the overlap relation, so that any two entries in different groups have
    disjoint intervals: nothing is ranked apart when its interval overlaps. The rank of a group is one plus the number
    of entries in better groups.
    """
    low, high = as_vector(lows, "lows"), as_vector(highs, "highs")
    if low.size != high.size or (low > high).any():
        raise ValueError("significance_groups: every low needs a high that is not below it")
    if higher_is_better:
        low, high = -high, -low
    ranks, rank, reach = [0] * low.size, 1, -math.inf
    for position, entry in enumerate(np.argsort(low, kind="stable")):
        if low[entry] > reach:
            rank = position + 1
        reach = max(reach, float(high[entry]))
        ranks[int(entry)] = rank
    return ranks
