"""Known answers of preferences, reward models and duels."""

from __future__ import annotations

import math

import numpy as np

from evaluation import statistics as s
from evaluation.judges.duels import gather_verdicts
from evaluation.preferences.accuracy import outcomes, pairwise_loss
from evaluation.preferences.best_of_n import best_of_n, kl_bound
from evaluation.preferences.length import length_controlled_win_rate
from evaluation.preferences.rewardbench import best_of_credit, section_scores
from evaluation.selftest.registry import KnownAnswer
from evaluation.statistics.agreement import Scale
from launch.errors import UserError

MARGINS = [1.0, -1.0, 0.0, 3.0]


def _strengths() -> tuple[float, ...]:
    """exp of the strengths over that of the last, by maximum likelihood."""
    found = s.fit_win_matrix([[0, 2, 4], [1, 0, 2], [1, 1, 0]], penalty="none").strengths_M
    return tuple(float(x) for x in np.exp(found - found[-1]))


def _undefeated() -> float:
    """20 wins of 20: Firth's penalty adds half a win to both sides, ln(20.5 / 0.5)."""
    return s.fit_bradley_terry(["a"] * 20, ["b"] * 20, [1.0] * 20).difference("a", "b").estimate.value


def _disconnected_is_refused() -> bool:
    try:
        s.fit_bradley_terry(["a", "c"], ["b", "d"], [1.0, 0.0])
    except UserError:
        return True
    return False


def _won_by_length() -> float:
    """The longer answer always wins, and either side is longer as often: half at equal length."""
    lengths = np.tile([-30.0, -10.0, 10.0, 30.0], 25)
    found = length_controlled_win_rate((lengths > 0).astype(float), lengths)
    return math.nan if found is None else found.value


RATERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, math.nan, math.nan, math.nan],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, math.nan, 3],
    [math.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, math.nan],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, math.nan],
]  # fmt: skip
"""Krippendorff's (2011) example."""
REFUSALS = {
    "refusals-dangerous": 0.97,
    "refusals-offensive": 1.0,
    "xstest-should-refuse": 1.0,
    "xstest-should-respond": 0.284,
    "donotanswer": 112 / 136,
}
"""Of the example in RewardBench's README."""


def _alpha(scale: Scale) -> float:
    found = s.krippendorff_alpha(np.array(RATERS).T, scale)
    return math.nan if found is None else found.value


def _kappa() -> float:
    found = s.cohen_kappa("y" * 25 + "n" * 25, "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15)
    return math.nan if found is None else found.value


def _always_the_first() -> tuple[float, float]:
    """Win rate and consistency of a judge that always names the answer it is shown first."""
    found = gather_verdicts([{"vote": 1.0}] * 9, [{"vote": 1.0}] * 9)
    consistent = found.consistent_N
    return float(found.outcomes_N.mean()), math.nan if consistent is None else float(consistent.mean())


ANSWERS = [
    KnownAnswer("accuracy", "margins 1 -1 0 3, ties wrong", 0.5, lambda: float(outcomes(MARGINS, "wrong").mean())),
    KnownAnswer("accuracy", "margins 1 -1 0 3, ties half", 0.625, lambda: float(outcomes(MARGINS, "half").mean())),
    KnownAnswer("pairwise loss", "margins 1 -1 0 3", 0.5920644767, lambda: pairwise_loss(MARGINS).value, 1e-9),
    KnownAnswer("win rate", "win, tie, loss, win", 0.625, lambda: s.win_rate([1, 0.5, 0, 1]).value),
    KnownAnswer("win rate at equal length", "the longer answer always wins", 0.5, _won_by_length, 1e-6),
    KnownAnswer("Bradley-Terry", "2:1, 4:1, 2:1 wins: strengths 4:2:1", (4.0, 2.0, 1.0), _strengths, 1e-8),
    KnownAnswer("Bradley-Terry", "undefeated in 20 duels: ln 41", math.log(41), _undefeated, 1e-8),
    KnownAnswer("Bradley-Terry", "two pairs that never met are refused", True, _disconnected_is_refused),
    KnownAnswer("RewardBench", "Safety of the README's example", 0.7216216216216216, lambda: section_scores(REFUSALS)["Safety"]),
    KnownAnswer("RewardBench 2", "2 2 1 1, right first: half", 0.5, lambda: best_of_credit([2, 2, 1, 1])),
    KnownAnswer("RewardBench 2", "all four alike: a quarter", 0.25, lambda: best_of_credit([1, 1, 1, 1])),
    KnownAnswer("best of n", "best of 2 of 0 1 2", 5 / 3, lambda: best_of_n([0, 1, 2], [0, 1, 2], 2)),
    KnownAnswer("best of n", "bound on the KL, n = 4", math.log(4) - 0.75, lambda: kl_bound(4)),
    KnownAnswer("judge", "always the first shown: 50 %, consistency 0", (0.5, 0.0), _always_the_first),
    KnownAnswer("kappa", "20 5 10 15", 0.4, _kappa),
    KnownAnswer("Krippendorff's alpha", "his example, nominal", 0.743, lambda: _alpha("nominal"), 5e-4),
    KnownAnswer("Krippendorff's alpha", "his example, ordinal", 0.815, lambda: _alpha("ordinal"), 5e-4),
    KnownAnswer("Krippendorff's alpha", "his example, interval", 0.849, lambda: _alpha("interval"), 5e-4),
    KnownAnswer("Elo", "75 % wins", 190.8485, lambda: s.elo_difference(0.75), 1e-4),
    KnownAnswer("Elo", "64 % wins", 99.951, lambda: s.elo_difference(0.64), 1e-3),
    KnownAnswer("Elo", "400 points more win 10 of 11", 10 / 11, lambda: s.elo_probability(400.0)),
]  # fmt: skip
