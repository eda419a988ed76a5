"""What a set of items can see at all: the smallest difference that it resolves. Pure."""

from __future__ import annotations

from scipy.special import stdtrit

from evaluation.statistics.estimate import Estimate, t_quantile, z_quantile

POWER = 0.8
FEWEST = 3
"""Items below which nothing is said: of two the standard error is itself known to 1 / sqrt(2 (n - 1)) = 71 % only, and t with
one degree makes 14 of it."""


def smallest_resolvable_difference(estimate: Estimate, power: float = POWER) -> float | None:
    """The true difference that a two-sided test at 1 - level finds with probability `power`, with these n items.

    `estimate` is a paired difference (or a value held against a fixed number), whose stderr says how much the items
    scatter: (t_(1 - alpha/2) + t_power) stderr with n - 1 degrees. Four fifths is the custom. Where the items never
    differ the stderr is that of the interval, whose method knows that they might have. None without either, and of fewer
    than FEWEST items. "No significant difference" means: smaller than about this.
    """
    if not 0 < power < 1:
        raise ValueError(f"power: {power} is not between 0 and 1")
    stderr = estimate.stderr
    if not stderr and estimate.low is not None and estimate.high is not None:
        stderr = (estimate.high - estimate.low) / (2 * z_quantile(estimate.level))
    if not stderr or estimate.n < FEWEST:
        return None
    freedom = estimate.n - 1
    quantiles = t_quantile(freedom, estimate.level) + stdtrit(freedom, power)
    return float(quantiles * stderr)
