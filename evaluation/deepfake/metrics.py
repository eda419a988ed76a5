"""Metrics of a detector's scores: average precision, equal error rate, frozen accuracy. Areas: `evaluation.statistics.roc`.

Labels are 1 for generated (the positive class) and 0 for real; a higher score means "generated".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evaluation.statistics import LEVEL, Estimate, wilson
from evaluation.statistics.roc import roc_curve, split_scores
from launch.seeding import numpy_generator

DRAWS = 10_000


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Sum over thresholds of precision times the gain in recall (no interpolation)."""
    real, generated = split_scores(labels, scores)
    roc = roc_curve(labels, scores)
    found, wrong = roc.true_positive * len(generated), roc.false_positive * len(real)
    precision = found[1:] / (found[1:] + wrong[1:])
    return float((np.diff(roc.true_positive) * precision).sum())


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> float:
    """The rate at which false alarms equal misses, on the straight line between neighbouring points of the ROC."""
    roc = roc_curve(labels, scores)
    gap = roc.false_positive - (1 - roc.true_positive)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    weight = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float((1 - weight) * roc.false_positive[after - 1] + weight * roc.false_positive[after])


def true_positive_rate_at(labels: ArrayLike, scores: ArrayLike, false_positive_rate: float) -> float:
    """The largest true positive rate whose false positive rate does not exceed the given one."""
    roc = roc_curve(labels, scores)
    return float(roc.true_positive[roc.false_positive <= false_positive_rate].max())


def true_positive_rate_estimate(
    labels: ArrayLike, scores: ArrayLike, false_positive_rate: float, seed: int, level: float = LEVEL
) -> Estimate:
    """`true_positive_rate_at` with an interval that knows that the threshold, too, was estimated; n counts all images.

    Where the threshold of a false positive rate a lies among n real scores is a matter of order statistics, whatever
    their distribution: J ~ binomial(n, a) of them are above it, and the rates at the real scores beside it are beta.
    Between these two the ROC is taken as straight, and the true positive rate is drawn around the count of generated
    images found there (Jeffreys' beta). The percentiles of DRAWS such draws are the limits: the Bayesian bootstrap of
    the ROC (Gu, Ghosal and Roy 2008), at one point. Below 1 / a real images most draws lie beyond the highest of them,
    where the ROC is taken to rise as the square root: a concave one lies above the straight line from the origin, and
    below the step of the plain estimate (intervals covered 98 and 74 % with these, 60 images of either kind).
    """
    real, generated = split_scores(labels, scores)
    n, m, a = len(real), len(generated), false_positive_rate
    generator = numpy_generator(seed, "true positive rate")
    above_R = generator.binomial(n, a, DRAWS)  # real images above the true threshold
    before_R = np.where(above_R > 0, a * generator.beta(np.maximum(above_R, 1), 1), 0.0)
    after_R = np.where(above_R < n, a + (1 - a) * generator.beta(1, np.maximum(n - above_R, 1)), 1.0)
    share_R = ((a - before_R) / (after_R - before_R)) ** np.where(above_R > 0, 1.0, 0.5)
    found_V = np.concatenate([[0.0], _found_at(real, generated), [m]])
    count_R = (1 - share_R) * found_V[above_R] + share_R * found_V[above_R + 1]
    rates_R = generator.beta(count_R + 0.5, m - count_R + 0.5)
    value = true_positive_rate_at(labels, scores, a)
    limits = np.quantile(rates_R, [0.5 - level / 2, 0.5 + level / 2])
    low, high = min(float(limits[0]), value), max(float(limits[1]), value)
    return Estimate(value, n + m, float(rates_R.std(ddof=1)), low, high, level, "Bayesian bootstrap of the ROC")


def _found_at(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Generated images above each real score, from the highest to the lowest (N,); equal scores rise in even steps."""
    falling, rising = np.sort(-real), np.sort(-generated)
    above, with_equal = (np.searchsorted(rising, falling, side=side) for side in ("left", "right"))
    first, past = (np.searchsorted(falling, falling, side=side) for side in ("left", "right"))
    step = (np.arange(len(real)) - first + 1) / (past - first + 1)
    return np.asarray(above + (with_equal - above) * step)


def equal_error_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold at which the share of real images called generated is nearest to that of generated ones called real.

    It lies in the middle between two neighbouring scores (of two that are as near, in the middle of both): where the
    classes are apart, in the middle of the gap. Move or stretch the scores and it moves along. Applied to other images
    than those it was chosen on it gives the half total error rate of Bengio and Mariethoz (2004).
    """
    real, generated = (np.sort(s) for s in split_scores(labels, scores))
    distinct = np.unique(np.concatenate([real, generated]))
    if distinct.size == 1:
        return float(distinct[0])
    middles = distinct[:-1] + np.diff(distinct) / 2
    false_alarms = 1 - np.searchsorted(real, middles) / real.size
    misses = np.searchsorted(generated, middles) / generated.size
    gap = np.abs(false_alarms - misses)
    return float(middles[gap <= gap.min() + 1e-12].mean())


def correct_at(labels: ArrayLike, scores: ArrayLike, threshold: float) -> np.ndarray:
    """Whether each image is classified rightly when scores >= threshold mean "generated": bool (N,)."""
    split_scores(labels, scores)
    return (np.asarray(scores) >= threshold) == (np.asarray(labels) == 1)


def balanced_accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float, level: float = LEVEL) -> Estimate:
    """Accuracy at a threshold where both kinds count alike: the mean of the shares of real and of generated images that are
    classified rightly. n counts all images.

    The interval puts the two Wilson intervals together (MOVER: Zou and Donner 2008), and keeps a width at 0 and 1.
    """
    right, truth = correct_at(labels, scores, threshold), np.asarray(labels)
    real, generated = (wilson(float(r.sum()), len(r), level) for r in (right[truth == 0], right[truth == 1]))
    value = (real.value + generated.value) / 2
    below, above = (
        float(np.hypot(*(abs(getattr(e, side) - e.value) for e in (real, generated)))) / 2 for side in ("low", "high")
    )
    error = float(np.hypot(real.stderr or 0.0, generated.stderr or 0.0)) / 2
    return Estimate(value, len(right), error, value - below, value + above, level, "Wilson of both kinds, MOVER")
