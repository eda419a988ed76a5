"""How well a reward model orders preference pairs: accuracy, loss, calibration. Pure.

The margin of a pair is reward(chosen) - reward(rejected), in units of the Bradley-Terry logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from evaluation.options import Ties
from evaluation.statistics import LEVEL, Estimate, bootstrap, clustered_mean, mean
from evaluation.statistics.intervals import as_vector, cluster_codes
from launch.seeding import numpy_generator

Answer = tuple[str, bool]
"""What a judge reads of a completion: its text, and whether it ended."""
BINS = 10
NULL_DRAWS = 1000


def outcomes(differences: ArrayLike, ties: Ties = "half") -> NDArray[np.float64]:
    """1 where a difference is positive, 0 where it is negative; zeros count 0.5 ("half") or 0 ("wrong")."""
    d = as_vector(differences, "differences")
    return np.where(d == 0, 0.5 if ties == "half" else 0.0, (d > 0).astype(float))


def duel_outcomes(
    rewards: ArrayLike, other_rewards: ArrayLike, answers: Sequence[Answer], other_answers: Sequence[Answer]
) -> NDArray[np.float64]:
    """Whose answer a judge prefers on each of n prompts: 1 for the first, 0 for the second, 0.5 for neither.

    The same answer is a tie, whatever the last bits of its rewards (n,), which depend on what it was batched with.
    """
    same = [one == other for one, other in zip(answers, other_answers, strict=True)]
    return outcomes(np.where(same, 0.0, np.subtract(rewards, other_rewards)))


def pairwise_loss(margins: ArrayLike, groups: Sequence[object] | None = None, level: float = LEVEL) -> Estimate:
    """Mean Bradley-Terry loss, log(1 + exp(-margin)), in nats: ln 2 = 0.693 for a model that knows nothing."""
    losses = np.logaddexp(0.0, -as_vector(margins, "margins"))
    return mean(losses, level) if groups is None else clustered_mean(losses, groups, level)


def brier_score(margins: ArrayLike, groups: Sequence[object] | None = None, level: float = LEVEL) -> Estimate:
    """Mean (1 - sigmoid(margin))^2: 0.25 for a model that knows nothing."""
    squares = (1 - expit(as_vector(margins, "margins"))) ** 2
    return mean(squares, level) if groups is None else clustered_mean(squares, groups, level)


# ---------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram: pairs whose stated confidence lies in [low, high)."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability_bins(margins: ArrayLike, bins: int = BINS) -> list[Bin]:
    """Non-empty bins of equal width of the confidence sigmoid(|margin|) on [0.5, 1], with the accuracy in each."""
    d = as_vector(margins, "margins")
    confidence, right = expit(np.abs(d)), outcomes(d)
    index = _bin_index(confidence, bins)
    found = []
    for b in np.unique(index):
        inside = index == b
        low, high = 0.5 + b / (2 * bins), 0.5 + (b + 1) / (2 * bins)
        found.append(Bin(low, high, int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())))
    return found


def _bin_index(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    return np.minimum(((confidence - 0.5) * 2 * bins).astype(np.int64), bins - 1)


def _ece(confidence: NDArray[np.float64], right: NDArray[np.float64], bins: int) -> float:
    """Expected calibration error: sum over bins of |sum of (right - confidence)| / n."""
    gaps = np.bincount(_bin_index(confidence, bins), weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum()) / confidence.size


def _ece_estimate(
    confidence: NDArray[np.float64],
    right: NDArray[np.float64],
    bins: int,
    groups: Sequence[object] | None,
    seed: int,
    level: float,
) -> Estimate:
    """The error with a bootstrap interval that draws whole groups (Davison and Hinkley 1997, section 3.8).

    Each group enters by its summed gaps in each bin and its number of pairs, so that groups of unlike sizes can be
    drawn together. Resampling adds to the error what sampling added, hence the bias correction: with it intervals
    covered 86 % of the truths on 300 pairs of a model that states twice its logit (benchmarks/coverage.py), and 70 %
    without. A calibrated model's truth is 0, which no such interval holds: `expected` and `p_value` of `Calibration`
    are the test of that.
    """
    codes = np.arange(confidence.size) if groups is None else cluster_codes(groups)
    sizes_G = np.bincount(codes)
    gaps_GB = np.zeros((sizes_G.size, bins))
    np.add.at(gaps_GB, (codes, _bin_index(confidence, bins)), right - confidence)

    def error(rows_RG: NDArray[np.int64]) -> NDArray[np.float64]:
        total_R = sum(np.abs(gaps_GB[:, b][rows_RG].sum(-1)) for b in range(bins))
        return np.asarray(total_R / sizes_G[rows_RG].sum(-1))

    rows_G, purpose = np.arange(sizes_G.size), "calibration"
    found = bootstrap(error, rows_G, seed=seed, purpose=purpose, resamples=1000, level=level, bias_corrected=True)
    clustered = sizes_G.size < confidence.size and found.low is not None
    return replace(found, method=f"{found.method}, clustered") if clustered else found


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, with what a perfectly calibrated model would show at the same confidences.

    The error is biased upwards on few pairs; `expected` is its mean when outcomes are drawn from the stated
    confidences, and `p_value` how often such draws reach the observed error.
    """

    error: Estimate
    expected: float
    p_value: float
    bins: list[Bin]


def calibration(
    margins: ArrayLike,
    seed: int,
    bins: int = BINS,
    level: float = LEVEL,
    groups: Sequence[object] | None = None,
) -> Calibration:
    """ECE (Naeini et al. 2015) of sigmoid(|margin|) against being right; ties are half right at confidence 0.5.

    `groups` labels pairs that belong together (those of one prompt): the interval draws them together. `expected` and
    `p_value` do not use them, since the null model says that outcomes are independent given the confidences.
    """
    d = as_vector(margins, "margins")
    confidence, right = expit(np.abs(d)), outcomes(d)
    error = _ece_estimate(confidence, right, bins, groups, seed, level)
    generator = numpy_generator(seed, "calibration null")
    draws = ((generator.random(d.size) < confidence).astype(float) for _ in range(NULL_DRAWS))
    null = np.array([_ece(confidence, drawn, bins) for drawn in draws])
    p_value = float((1 + (null >= error.value - 1e-12).sum()) / (1 + NULL_DRAWS))
    return Calibration(error, float(null.mean()), p_value, reliability_bins(d, bins))
