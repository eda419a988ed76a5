"""Calibration of stated probabilities: reliability, expected calibration error, and what a calibrated model would show. Pure.

A margin is the logit of the probability that an item comes out right: reward(chosen) - reward(rejected), or the logit
of a detector's score, with its sign turned around where the item is a negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from evaluation.statistics.estimate import LEVEL, Estimate, as_vector
from evaluation.statistics.intervals import cluster_codes
from evaluation.statistics.resampling import bootstrap
from launch.seeding import numpy_generator

BINS = 10
NULL_DRAWS = 1000


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
    confidence, right = expit(np.abs(d)), _right(d)
    index = _bin_index(confidence, bins)
    found = []
    for b in np.unique(index):
        inside = index == b
        low, high = 0.5 + b / (2 * bins), 0.5 + (b + 1) / (2 * bins)
        found.append(Bin(low, high, int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())))
    return found


def _right(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where a margin is positive, 0 where it is negative, 0.5 for 0."""
    return np.asarray(np.sign(margins) / 2 + 0.5)


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
    confidence, right = expit(np.abs(d)), _right(d)
    error = _ece_estimate(confidence, right, bins, groups, seed, level)
    generator = numpy_generator(seed, "calibration null")
    draws = ((generator.random(d.size) < confidence).astype(float) for _ in range(NULL_DRAWS))
    null = np.array([_ece(confidence, drawn, bins) for drawn in draws])
    p_value = float((1 + (null >= error.value - 1e-12).sum()) / (1 + NULL_DRAWS))
    return Calibration(error, float(null.mean()), p_value, reliability_bins(d, bins))
