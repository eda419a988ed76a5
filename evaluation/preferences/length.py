"""Length in preferences: what length alone explains, and win rates with length held equal. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from evaluation.statistics import LEVEL, Estimate
from evaluation.statistics.intervals import as_vector, cluster_codes, z_quantile
from evaluation.statistics.logistic import clustered_covariance, firth_logistic


def length_slope(
    margins: ArrayLike,
    length_differences: ArrayLike,
    groups: Sequence[object] | None = None,
    level: float = LEVEL,
) -> Estimate | None:
    """Reward per unit of length: least squares through the origin of margins (n,) on length differences (n,).

    There is no intercept since which answer comes first is arbitrary: swapping a pair changes both signs. The stderr
    is robust to unequal variances (White 1980, HC1); `groups` labels pairs that belong together (those of one prompt),
    whose scores are then summed first (Liang and Zeger 1986, with g/(g-1)). None when all differences are zero.
    """
    y, x = as_vector(margins, "margins"), as_vector(length_differences, "length_differences")
    power = float(x @ x)
    if power == 0:
        return None
    slope = float(x @ y) / power
    scores = x * (y - slope * x)
    if groups is not None:
        scores = np.bincount(cluster_codes(groups), weights=scores).astype(np.float64)
    n = scores.size
    if n < 2:
        return Estimate(slope, n, None, None, None, level, f"none (n = {n})")
    stderr = math.sqrt(n / (n - 1) * float(scores @ scores)) / power
    half = z_quantile(level) * stderr
    method = "HC1, normal" if n == x.size else "sandwich, normal, clustered"
    return Estimate(slope, n, stderr, slope - half, slope + half, level, method)


def length_correlation(margins: ArrayLike, length_differences: ArrayLike) -> float | None:
    """Correlation of margins and length differences about zero, in [-1, 1]; None when either is all zero."""
    y, x = as_vector(margins, "margins"), as_vector(length_differences, "length_differences")
    power = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / power if power else None


def length_controlled_win_rate(
    outcomes: ArrayLike,
    length_differences: ArrayLike,
    groups: Sequence[object] | None = None,
    level: float = LEVEL,
) -> Estimate | None:
    """Win rate predicted at equal length: AlpacaEval 2's (Dubois et al. 2024), fitted on these rows alone.

    outcomes (n,) in {1, 0.5, 0} are regressed by `firth_logistic` on an intercept a and tanh(length difference / sd), sd
    with ddof 1; the estimate is sigmoid(a), its interval sigmoid(a +- z se(a)) by the delta method. AlpacaEval has the same
    two terms and two things that it downloads: a difficulty of each instruction, over which it takes the mean of the
    predictions (as sigmoid(a) is of the fit without them), and answers made to game length, which draw its coefficients
    towards them with weight 0.2. Equal lengths everywhere leave the intercept alone. Several rows of one group (samples of a prompt) are allowed for by `clustered_covariance`.
    None when every length difference is the same and not zero, so that length and quality cannot be told apart, and
    for a single group.
    """
    y, x = as_vector(outcomes, "outcomes"), as_vector(length_differences, "length_differences")
    n = x.size
    spread = float(x.std(ddof=1)) if n > 1 else 0.0
    if n < 2 or (spread == 0 and x[0] != 0):
        return None
    features = np.stack([np.ones(n)] if spread == 0 else [np.ones(n), np.tanh(x / spread)], 1)
    fit = firth_logistic(features, y)
    units = n if groups is None else len(set(groups))
    if units == 1:
        return None
    covariance = fit.covariance if groups is None or units == n else clustered_covariance(features, y, fit, groups)
    logit, se = float(fit.coefficients[0]), math.sqrt(float(covariance[0, 0]))
    rate, z = float(expit(logit)), z_quantile(level)
    limits = float(expit(logit - z * se)), float(expit(logit + z * se))
    method = "delta method on the logit, Firth logistic regression" + (", clustered" if units < n else "")
    return Estimate(rate, units, se * rate * (1 - rate), *limits, level, method)
