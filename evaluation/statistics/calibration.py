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

from evaluation.statistics.absolute_sum import absolute_sum
from evaluation.statistics.estimate import LEVEL, Estimate, as_vector, no_interval, t_quantile, z_quantile
from evaluation.statistics.intervals import cluster_codes
from evaluation.statistics.resampling import CHUNK_CELLS
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
    """The error without its upward bias, and its interval: `absolute_sum` of the bins' gaps.

    The gap of a bin is the sum of (right - confidence) inside it over the number n of all pairs. The covariance of the
    gaps is that of ratios with whole groups as units, with the few-clusters factor of Student's t; each bin has one more
    group, with the variance of a calibrated answer, so that five right answers of five do not claim certainty.
    """
    codes = np.arange(confidence.size) if groups is None else cluster_codes(groups)
    sizes_G, index = np.bincount(codes), _bin_index(confidence, bins)
    units, n = sizes_G.size, confidence.size
    gaps_GB = np.zeros((units, bins))
    np.add.at(gaps_GB, (codes, index), right - confidence)
    means_B = gaps_GB.sum(axis=0) / n
    if units < 2:
        return no_interval(float(np.abs(means_B).sum()), units, level)
    residuals_GB = (gaps_GB - sizes_G[:, None] * means_B) / n
    few = (t_quantile(units - 1, level) / z_quantile(level)) ** 2
    held_B = np.maximum(np.bincount(index, minlength=bins), 1)
    stated_B = np.bincount(index, weights=confidence * (1 - confidence), minlength=bins) / held_B
    covariance_BB = units / (units - 1) * few * residuals_GB.T @ residuals_GB + np.diag(stated_B) / units**2
    found = absolute_sum(means_B, covariance_BB, units, seed, level, "calibration")
    clustered = units < n and found.low is not None
    return replace(found, method=f"{found.method}, clustered") if clustered else found


def _null_errors(confidence: NDArray[np.float64], bins: int, seed: int) -> NDArray[np.float64]:
    """Plug-in errors of NULL_DRAWS sets of outcomes that are drawn from the stated confidences: (NULL_DRAWS,)."""
    generator, index = numpy_generator(seed, "calibration null"), _bin_index(confidence, bins)
    n, found = confidence.size, []
    for start in range(0, NULL_DRAWS, rows := max(1, CHUNK_CELLS // n)):
        count = min(rows, NULL_DRAWS - start)
        gaps_RN = (generator.random((count, n)) < confidence) - confidence
        places = index + bins * np.arange(count)[:, None]
        sums = np.bincount(places.ravel(), weights=gaps_RN.ravel(), minlength=count * bins)
        found.append(np.abs(sums.reshape(count, bins)).sum(axis=1) / n)
    return np.concatenate(found)


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, with what a perfectly calibrated model would show at the same confidences.

    `plug_in` is the error as Naeini et al. (2015) define it, sum over bins of n_b / n |accuracy - confidence|, which is
    biased upwards on few pairs; `error` is without that bias, and its interval is for the error of infinitely many pairs
    in the same bins. `expected` is the mean of the plug-in error when outcomes are drawn from the stated confidences, and
    `p_value` how often such draws reach the observed one.
    """

    error: Estimate
    plug_in: float
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
    error, plug_in = _ece_estimate(confidence, right, bins, groups, seed, level), _ece(confidence, right, bins)
    null = _null_errors(confidence, bins, seed)
    p_value = float((1 + (null >= plug_in - 1e-12).sum()) / (1 + NULL_DRAWS))
    if p_value > (1 - level) / 2 and error.low is not None:
        error = replace(
            error, low=0.0
        )  # the exact test cannot tell it from calibrated, the normal errors of bins might
    return Calibration(error, plug_in, float(null.mean()), p_value, reliability_bins(d, bins))
