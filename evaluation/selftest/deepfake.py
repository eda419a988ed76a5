"""Known answers of the detectors' metrics and features."""

from __future__ import annotations

import math

import numpy as np
import scipy.stats

from evaluation.deepfake import metrics
from evaluation.deepfake.features import power_spectrum
from evaluation.selftest.registry import KnownAnswer
from evaluation.statistics import roc
from launch.seeding import numpy_generator

LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
SCORES = [0.1, 0.2, 0.35, 0.8, 0.3, 0.6, 0.7, 0.9]


def _worked_example() -> tuple[float, ...]:
    return (
        roc.roc_auc(LABELS, SCORES),
        metrics.average_precision(LABELS, SCORES),
        metrics.equal_error_rate(LABELS, SCORES),
        float(metrics.correct_at(LABELS, SCORES, 0.5).mean()),
    )


def _delong() -> float:
    """By hand: placements (.75, .75, .75, 1) - 0 and so on; the variance is the sum of both, over 4 each."""
    above = [2, 3, 3, 4]  # real images below each generated one
    below = [4, 4, 3, 1]  # generated images above each real one
    variance = np.var(np.array(above) / 4, ddof=1) / 4 + np.var(np.array(below) / 4, ddof=1) / 4
    return float((roc.auc_estimate(LABELS, SCORES).stderr or math.nan) - math.sqrt(variance))


def _two_normals(separation: float) -> tuple[float, float]:
    """20,001 quantiles of each of two unit normals in place of draws."""
    quantiles = scipy.stats.norm.ppf((np.arange(20_001) + 0.5) / 20_001)
    labels = np.repeat([0, 1], 20_001)
    scores = np.concatenate([quantiles, quantiles + separation])
    return roc.roc_auc(labels, scores), metrics.equal_error_rate(labels, scores)


def _nearest_upsampling() -> float:
    """Doubled pixels have no energy at the Nyquist row and column."""
    plane = numpy_generator(0, "selftest upsampling").random((1, 16, 16)).repeat(2, axis=1).repeat(2, axis=2)
    spectrum = power_spectrum(plane)[0]
    return float(spectrum[16].sum() + spectrum[:, 16].sum())


ANSWERS = [
    KnownAnswer("AUC, AP, EER, accuracy", "the eight scores of the worked example", (0.75, 0.7708333333333333, 0.25, 0.75), _worked_example),
    KnownAnswer("AUC", "the same scores, inverted", 0.25, lambda: roc.roc_auc(LABELS, [-x for x in SCORES])),
    KnownAnswer("AUC", "all scores equal", 0.5, lambda: roc.roc_auc(LABELS, [0.0] * 8)),
    KnownAnswer("AUC", "standard error by DeLong, by hand", 0.0, _delong),
    KnownAnswer("accuracy, both kinds alike", "90 of 90 real and 4 of 10 generated images right", 0.7, lambda: metrics.balanced_accuracy([0] * 90 + [1] * 10, [0.1] * 90 + [0.9] * 4 + [0.2] * 6, 0.5).value),
    KnownAnswer("AUC, EER", "two unit normals, 1 apart", (0.7602499, 0.3085375), lambda: _two_normals(1.0), 1e-4),
    KnownAnswer("AUC, EER", "two unit normals, 2 apart", (0.9213504, 0.1586553), lambda: _two_normals(2.0), 1e-4),
    KnownAnswer("power spectrum", "pixels doubled: nothing at Nyquist", 0.0, _nearest_upsampling, 1e-20),
]  # fmt: skip
