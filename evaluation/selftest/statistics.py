"""Known answers of the statistics core."""

from __future__ import annotations

import math

import numpy as np

from evaluation import statistics as s
from evaluation.selftest.registry import KnownAnswer
from evaluation.statistics.estimate import Estimate


def _limits(estimate: Estimate) -> tuple[float, float]:
    return (math.nan if estimate.low is None else estimate.low, math.nan if estimate.high is None else estimate.high)


def _error(estimate: Estimate) -> float:
    return math.nan if estimate.stderr is None else estimate.stderr


def _paired_hundred() -> float:
    """100 items: 10 that only we have right, 2 that only they have right, 88 that both have."""
    ours, theirs = np.array([1] * 10 + [0] * 2 + [1] * 88), np.array([0] * 10 + [1] * 2 + [1] * 88)
    return _error(s.paired_difference(ours, theirs).estimate)


def _merged_ranks() -> tuple[float, float]:
    """Ten values on three ranks, one of which got none."""
    parts = [s.Moments.of(x) for x in (np.arange(4.0), np.zeros(0), np.arange(4.0, 10.0))]
    found = s.mean_from_moments(s.merge_moments(parts))
    return found.value, _error(found)


def _delta_ratio() -> float:
    """Numerators 1, 2, 3 over denominators 1, 1, 2: R = 1.5, deviations -.5, .5, 0, sd .5, over sqrt 3 and 4/3."""
    return _error(s.ratio([1.0, 2.0, 3.0], [1.0, 1.0, 2.0]))


def _rank_intervals() -> tuple[int, ...]:
    """Three entries, of which the first surely beats the last, and the one between neither."""
    found = s.rank_intervals(s.better_by_intervals([5.0, 4.0, 3.0], [6.0, 5.5, 4.5]))
    return tuple(rank for r in found for rank in (r.best, r.worst))


ANSWERS = [
    KnownAnswer("Student's interval", "1 2 3 4 5", (3 - 1.9632432, 3 + 1.9632432), lambda: _limits(s.mean([1, 2, 3, 4, 5])), 1e-6),
    KnownAnswer("Wilson's interval", "0 of 20", (0.0, 0.16113), lambda: _limits(s.wilson(0, 20)), 5e-6),
    KnownAnswer("Wilson's interval", "5 of 10", (0.23659, 0.76341), lambda: _limits(s.wilson(5, 10)), 5e-6),
    KnownAnswer("standard error", "1 1 0 0, independent", 0.288675, lambda: _error(s.mean([1, 1, 0, 0])), 1e-6),
    KnownAnswer("standard error", "1 1 0 0 in two clusters", 0.5, lambda: _error(s.clustered_mean([1, 1, 0, 0], "aabb"))),
    KnownAnswer("standard error", "ratio, delta method", 0.5 / math.sqrt(3) / (4 / 3), _delta_ratio),
    KnownAnswer("standard error", "paired, 100 items, 10 and 2 discordant", 0.0339, _paired_hundred, 3e-4),
    KnownAnswer("merge over ranks", "0 .. 9 on three ranks, one empty", (4.5, math.sqrt(82.5 / 9 / 10)), _merged_ranks),
    KnownAnswer("McNemar, exact", "10 against 2", 0.0385742, lambda: s.mcnemar_exact(10, 2), 1e-7),
    KnownAnswer("McNemar, exact", "39 against 26", 0.1360324, lambda: s.mcnemar_exact(39, 26), 1e-7),
    KnownAnswer("McNemar, mid-p", "10 against 2: exact less binomial(12, 2) / 2^12", 158 / 4096 - 66 / 4096, lambda: s.mcnemar_mid_p(10, 2)),
    KnownAnswer("Holm", ".01 .04 .03 .005", (0.03, 0.06, 0.06, 0.02), lambda: tuple(s.holm([0.01, 0.04, 0.03, 0.005]))),
    KnownAnswer("Benjamini-Hochberg", ".01 .04 .03 .005", (0.02, 0.04, 0.04, 0.02), lambda: tuple(s.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]))),
    KnownAnswer("sign flips", "1 2 3: 2 of 8 signs reach 6", 0.25, lambda: s.sign_flip_test([1.0, 2.0, 3.0], 0, "selftest")),
    KnownAnswer("significance groups", "a chain of overlaps, and one apart", (1, 1, 1, 4), lambda: s.significance_groups([5, 4, 3, 0], [6, 5.5, 4.5, 1])),
    KnownAnswer("rank intervals", "the first beats the last only", (1, 2, 1, 3, 2, 3), _rank_intervals),
]  # fmt: skip
