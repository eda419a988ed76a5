"""Metrics of a detector's scores: area under the ROC, average precision, equal error rate, frozen accuracy.

Labels are 1 for generated (the positive class) and 0 for real; a higher score means "generated".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from evaluation.statistics import LEVEL, Difference, Estimate, combine_variances, wilson
from evaluation.statistics.estimate import no_interval
from launch.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Roc:
    """The points of the ROC, from threshold +infinity to -infinity: false and true positive rates, both (P,)."""

    false_positive: Array
    true_positive: Array


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """Scores of the real (label 0) and of the generated (label 1) images."""
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 1:
        raise UserError(
            f"labels have shape {y.shape}, scores have {s.shape}; give one label and one score to each image"
        )
    if not np.isfinite(s).all():
        raise UserError(f"score {int(np.flatnonzero(~np.isfinite(s))[0])} is NaN or infinite; look at that image")
    real, generated = s[y == 0], s[y == 1]
    if len(real) + len(generated) != len(s) or min(len(real), len(generated)) == 0:
        raise UserError("labels must hold both 0 (real) and 1 (generated) and nothing else")
    return real, generated


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> Roc:
    """The ROC of scores (N,): equal scores move together, so ties give a sloping step."""
    real, generated = _checked(labels, scores)
    thresholds = np.unique(np.concatenate([real, generated]))[::-1]
    above = [1 - np.searchsorted(np.sort(s), thresholds, side="left") / len(s) for s in (real, generated)]
    return Roc(np.concatenate([[0.0], above[0]]), np.concatenate([[0.0], above[1]]))


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """P(score of a generated image > score of a real one) + P(equal) / 2: the Mann-Whitney statistic."""
    real, generated = _checked(labels, scores)
    ranks = scipy.stats.rankdata(np.concatenate([generated, real]))
    m, n = len(generated), len(real)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def auc_interval(auc: float, positives: int, negatives: int, level: float = 0.95) -> tuple[float, float]:
    """Newcombe's score interval of an area under the ROC, with the variance of Hanley & McNeil (1982).

    Method 5 of Newcombe 2006 (Statistics in Medicine 25:559): all areas A with |auc - A| <= z sqrt(V(A)). Unlike the
    plain Wald interval it stays inside [0, 1] and keeps a width at auc = 1, where a detector's test often ends.
    """
    z = scipy.stats.norm.ppf((1 + level) / 2)
    size = (positives + negatives) / 2 - 1

    def excess(area: float) -> float:
        spread = area * (1 - area) * (1 + size * ((1 - area) / (2 - area) + area / (1 + area)))
        return (auc - area) ** 2 - z**2 * spread / (positives * negatives)

    # At auc = 1 (or 0) the end itself is a root without meaning, hence the step inside.
    low = scipy.optimize.brentq(excess, 0.0, min(auc, 1 - 1e-12)) if auc > 0 else 0.0
    high = scipy.optimize.brentq(excess, max(auc, 1e-12), 1.0) if auc < 1 else 1.0
    return float(low), float(high)


def placements(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """The share of real images that each generated one is above (M,), and the share of generated above each real (N,).

    Equal scores count half. Both have the area under the ROC as mean; they are its influence function.
    """
    real, generated = _checked(labels, scores)
    together = scipy.stats.rankdata(np.concatenate([generated, real]))
    m, n = len(generated), len(real)
    above_real = (together[:m] - scipy.stats.rankdata(generated)) / n
    below_generated = 1 - (together[m:] - scipy.stats.rankdata(real)) / m
    return above_real, below_generated


def auc_estimate(labels: ArrayLike, scores: ArrayLike, level: float = LEVEL) -> Estimate:
    """Area under the ROC with DeLong's standard error (DeLong, DeLong and Clarke-Pearson 1988); n counts all images.

    The interval is symmetric in the logit, with Welch-Satterthwaite's degrees of freedom. Where a class is separated
    so well that DeLong's variance is 0 it is Newcombe's (`auc_interval`), and there is no standard error.
    """
    area = roc_auc(labels, scores)
    parts = placements(labels, scores)
    n = sum(map(len, parts))
    variances = [float(p.var(ddof=1)) / len(p) if len(p) > 1 else 0.0 for p in parts]
    if min(map(len, parts)) < 2 or sum(variances) == 0 or not 0 < area < 1:
        low, high = auc_interval(area, len(parts[0]), len(parts[1]), level)
        return Estimate(area, n, None, low, high, level, "Newcombe score, Hanley-McNeil variance")
    slope = 1 / (area * (1 - area))
    degrees = [len(p) - 1 for p in parts]
    found = combine_variances(logit(area), n, [v * slope**2 for v in variances], degrees, level)
    low, high = (float(expit(limit)) for limit in (found.low, found.high))
    return Estimate(area, n, float(np.sqrt(sum(variances))), low, high, level, "DeLong, logit")


def auc_difference(labels: ArrayLike, ours: ArrayLike, theirs: ArrayLike, level: float = LEVEL) -> Difference:
    """Area under the ROC of one detector less that of another on the same images: DeLong's paired test."""
    pairs = zip(placements(labels, ours), placements(labels, theirs), strict=True)
    differences = [a - b for a, b in pairs]
    value, n = roc_auc(labels, ours) - roc_auc(labels, theirs), sum(map(len, differences))
    if min(map(len, differences)) < 2:
        return Difference(no_interval(value, n, level), None, "DeLong, paired")
    variances = [float(d.var(ddof=1)) / len(d) for d in differences]
    degrees = [len(d) - 1 for d in differences]
    estimate = combine_variances(value, n, variances, degrees, level, method="DeLong, paired")
    error = estimate.stderr or 0.0
    if error <= 1e-12:
        found = no_interval(value, n, level, "the detectors' placements differ by the same everywhere")
        return Difference(found, None if value else 1.0, "DeLong, paired")
    return Difference(estimate, float(2 * scipy.stats.norm.sf(abs(value) / error)), "DeLong, paired")


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Sum over thresholds of precision times the gain in recall (no interpolation)."""
    real, generated = _checked(labels, scores)
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
    _checked(labels, scores)
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
