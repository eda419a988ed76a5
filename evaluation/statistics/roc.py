"""Areas under the ROC with DeLong's errors and tests. Pure.

Labels are 1 for positives (generated, toxic) and 0 for negatives (real, harmless); a higher score means "positive".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtr

from evaluation.statistics.comparison import Difference
from evaluation.statistics.estimate import LEVEL, Estimate, no_interval, z_quantile
from evaluation.statistics.jackknife import combine_variances
from launch.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Roc:
    """The points of the ROC, from threshold +infinity to -infinity: false and true positive rates, both (P,)."""

    false_positive: Array
    true_positive: Array


def mid_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank of each value from 1, ties at the mean of their ranks: [3, 1, 3] -> [2.5, 1, 2.5]."""
    ordered = np.sort(values)
    return (ordered.searchsorted(values, "left") + ordered.searchsorted(values, "right") + 1) / 2


def split_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """Scores of the negatives (label 0) and of the positives (label 1); UserError where they cannot be told apart."""
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 1:
        raise UserError(
            f"labels have shape {y.shape}, scores have {s.shape}; give one label and one score to each item"
        )
    if not np.isfinite(s).all():
        raise UserError(f"score {int(np.flatnonzero(~np.isfinite(s))[0])} is NaN or infinite; look at that item")
    negative, positive = s[y == 0], s[y == 1]
    if len(negative) + len(positive) != len(s) or min(len(negative), len(positive)) == 0:
        raise UserError("labels must hold both 0 (negative) and 1 (positive) and nothing else")
    return negative, positive


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> Roc:
    """The ROC of scores (N,): equal scores move together, so ties give a sloping step."""
    negative, positive = split_scores(labels, scores)
    thresholds = np.unique(np.concatenate([negative, positive]))[::-1]
    above = [1 - np.searchsorted(np.sort(s), thresholds, side="left") / len(s) for s in (negative, positive)]
    return Roc(np.concatenate([[0.0], above[0]]), np.concatenate([[0.0], above[1]]))


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """P(score of a positive > score of a negative) + P(equal) / 2: the Mann-Whitney statistic."""
    negative, positive = split_scores(labels, scores)
    ranks = mid_ranks(np.concatenate([positive, negative]))
    m, n = len(positive), len(negative)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def auc_interval(auc: float, positives: int, negatives: int, level: float = LEVEL) -> tuple[float, float]:
    """Newcombe's score interval of an area under the ROC, with the variance of Hanley & McNeil (1982).

    Method 5 of Newcombe 2006 (Statistics in Medicine 25:559): all areas A with |auc - A| <= z sqrt(V(A)). Unlike the
    plain Wald interval it stays inside [0, 1] and keeps a width at auc = 1, where a test of a good detector often ends.
    """
    z = z_quantile(level)
    size = (positives + negatives) / 2 - 1

    def excess(area: float) -> float:
        spread = area * (1 - area) * (1 + size * ((1 - area) / (2 - area) + area / (1 + area)))
        return (auc - area) ** 2 - z**2 * spread / (positives * negatives)

    # At auc = 1 (or 0) the end itself is a root without meaning, hence the step inside.
    low = scipy.optimize.brentq(excess, 0.0, min(auc, 1 - 1e-12)) if auc > 0 else 0.0
    high = scipy.optimize.brentq(excess, max(auc, 1e-12), 1.0) if auc < 1 else 1.0
    return float(low), float(high)


def placements(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """The share of negatives that each positive is above (M,), and the share of positives above each negative (N,).

    Equal scores count half. Both have the area under the ROC as mean; they are its influence function.
    """
    negative, positive = split_scores(labels, scores)
    together = mid_ranks(np.concatenate([positive, negative]))
    m, n = len(positive), len(negative)
    above_negative = (together[:m] - mid_ranks(positive)) / n
    below_positive = 1 - (together[m:] - mid_ranks(negative)) / m
    return above_negative, below_positive


def auc_estimate(labels: ArrayLike, scores: ArrayLike, level: float = LEVEL) -> Estimate:
    """Area under the ROC with DeLong's standard error (DeLong, DeLong and Clarke-Pearson 1988); n counts all items.

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
    """Area under the ROC of one detector less that of another on the same items: DeLong's paired test."""
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
    return Difference(estimate, float(2 * ndtr(-abs(value) / error)), "DeLong, paired")
