"""Rankings that claim no more than the data: which entries surely beat which, rank intervals, significance groups. Pure.

Letters: N items, M models. Everything follows from one relation, `better_MM`: better_MM[i, j] is true where i surely
beats j. It comes from intervals that do not overlap (`better_by_intervals`), from paired tests on the same items, which
see much smaller differences (`better_by_items`), or from the differences of a fit (`better_by_differences`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics.comparison import paired_difference
from evaluation.statistics.corrections import holm
from evaluation.statistics.estimate import LEVEL, as_vector
from evaluation.statistics.resampling import resampled_counts
from launch.seeding import numpy_generator

Relation = NDArray[np.bool_]


@dataclass(frozen=True)
class RankInterval:
    """The ranks that an entry may truly have, 1 being the best."""

    best: int
    worst: int


def better_by_intervals(lows: ArrayLike, highs: ArrayLike, higher_is_better: bool = True) -> Relation:
    """Which of m entries surely beat which: their intervals do not overlap. Blind to differences on shared items."""
    low, high = as_vector(lows, "lows"), as_vector(highs, "highs")
    if low.size != high.size or (low > high).any():
        raise ValueError("lows, highs: every low needs a high that is not below it")
    above = low[:, None] > high[None]
    return above if higher_is_better else above.T


def better_by_items(
    scores_NM: ArrayLike,
    level: float = LEVEL,
    clusters: Sequence[object] | None = None,
    higher_is_better: bool = True,
) -> Relation:
    """Which models surely beat which on N shared items: paired tests of all pairs, their p-values after Holm.

    The probability of any false claim among all pairs is at most 1 - level.
    """
    scores = np.asarray(scores_NM, dtype=np.float64)
    if scores.ndim != 2:
        raise ValueError(f"scores: expected (items, models), got shape {scores.shape}")
    pairs = list(itertools.combinations(range(scores.shape[1]), 2))
    found = [paired_difference(scores[:, i], scores[:, j], level, clusters) for i, j in pairs]
    differences = [d.estimate.value for d in found]
    return better_by_differences(
        scores.shape[1], pairs, differences, [d.p_value for d in found], level, higher_is_better
    )


def better_by_differences(
    models: int,
    pairs: Sequence[tuple[int, int]],
    differences: Sequence[float],
    p_values: Sequence[float | None],
    level: float = LEVEL,
    higher_is_better: bool = True,
) -> Relation:
    """The relation from tested differences (first minus second of each pair), their p-values after Holm's correction.

    A p-value of None (too few items) claims nothing.
    """
    better = np.zeros((models, models), dtype=bool)
    if pairs:
        adjusted = holm([1.0 if p is None else p for p in p_values])
        for (i, j), difference, p in zip(pairs, differences, adjusted, strict=True):
            if p <= 1 - level and difference != 0:
                winner, loser = (i, j) if (difference > 0) == higher_is_better else (j, i)
                better[winner, loser] = True
    return better


def rank_intervals(better_MM: ArrayLike) -> list[RankInterval]:
    """The ranks each entry may have: 1 + the number that surely beat it, to M - the number that it surely beats.

    When the relation makes no false claim with probability `level`, all true ranks lie in these intervals together with
    at least that probability (Mogstad, Romano, Shaikh and Wilhelm 2024).
    """
    better = np.asarray(better_MM, dtype=bool)
    best, worst = 1 + better.sum(axis=0), len(better) - better.sum(axis=1)
    return [RankInterval(int(b), int(w)) for b, w in zip(best, worst, strict=True)]


def bootstrap_rank_intervals(
    scores_NM: ArrayLike,
    seed: int,
    level: float = LEVEL,
    higher_is_better: bool = True,
    resamples: int = 2000,
) -> list[RankInterval]:
    """Percentiles of each model's rank over resamples of the N items: the spread that other items would have shown.

    Equal means share the better rank. These say how stable a table is; among truly equal models they are too short to
    hold the true rank, 1 for all, at their level. For claims use `rank_intervals(better_by_items(...))`.
    """
    scores = np.asarray(scores_NM, dtype=np.float64)
    n, models = scores.shape
    counts_RN = resampled_counts(n, resamples, numpy_generator(seed, "bootstrap ranks"))
    means_RM = counts_RN @ (scores if higher_is_better else -scores) / n
    tolerance = 1e-12 * float(np.abs(scores).max(initial=0.0))
    ranks_RM = 1 + np.stack([(means_RM > means_RM[:, [m]] + tolerance).sum(axis=1) for m in range(models)], axis=1)
    lows = np.quantile(ranks_RM, 0.5 - level / 2, axis=0, method="lower")
    highs = np.quantile(ranks_RM, 0.5 + level / 2, axis=0, method="higher")
    return [RankInterval(int(low), int(high)) for low, high in zip(lows, highs, strict=True)]


def groups_from_relation(values: ArrayLike, better_MM: ArrayLike, higher_is_better: bool = True) -> list[int]:
    """Rank groups of M entries: in the order of their values, a group ends where all above surely beat all below.

    1 is the best; the rank of a group is one plus the number of entries in better groups.
    """
    value, better = as_vector(values, "values"), np.asarray(better_MM, dtype=bool)
    order = np.argsort(-value if higher_is_better else value, kind="stable")
    ranks, rank = [0] * value.size, 1
    for position, entry in enumerate(order):
        if position and better[np.ix_(order[:position], order[position:])].all():
            rank = position + 1
        ranks[int(entry)] = rank
    return ranks


def significance_groups(lows: ArrayLike, highs: ArrayLike, higher_is_better: bool = True) -> list[int]:
    """Rank groups of m entries from their intervals: 1 is the best, and entries whose intervals overlap share a group.

    Groups are the connected components of the overlap relation, so that any two entries in different groups have
    disjoint intervals: nothing is ranked apart when its interval overlaps.
    """
    centres = (as_vector(lows, "lows") + as_vector(highs, "highs")) / 2
    return groups_from_relation(centres, better_by_intervals(lows, highs, higher_is_better), higher_is_better)
