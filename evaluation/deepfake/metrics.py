"""Metrics of a detector's scores: average precision, equal error rate, frozen accuracy. Areas: `evaluation.statistics.roc`.

Labels are 1 for generated (the positive class) and 0 for real; a higher score means "generated".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evaluation.statistics import LEVEL, Estimate, wilson
from evaluation.statistics.roc import roc_curve, split_scores


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
