"""What a result could have seen at all: notes with the smallest differences that its items resolve.

A minimum detectable effect (Bloom 1995, Evaluation Review 19:547): the true difference that a two-sided test at the level of
the interval finds with probability POWER, (t_(1 - alpha/2) + t_POWER) times the standard error of the difference
(`evaluation.statistics.power`). Which standard error that is depends on what the metric is held against:

- a baseline on the same items: that of the paired difference, which the comparison has;
- another model, of which nothing is known but that its scores scatter as much: sqrt(2) stderr with 2 (n - 1) degrees of
  freedom. Compared item by item it is sqrt(2 (1 - r)) stderr, r the correlation of the two models over the items
  (Miller 2024, arXiv:2411.00640): the smaller, the more alike they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluation.schema import Comparison, Metric
from evaluation.statistics import Estimate, smallest_resolvable_difference
from evaluation.statistics.power import FEWEST, POWER

LISTED = 8
"""So many metrics are named one by one; of more (the tasks of a large group), the range."""
TOO_FEW = math.inf
"""In place of a smallest difference: none can be found."""
PAIRED = "; compared item by item, sqrt(1 - r) of that where the models' items correlate by r"


def resolution_notes(metrics: Sequence[Metric], alone: Sequence[str] = (), *, paired: bool = True) -> list[str]:
    """A sentence for each baseline, on the metrics compared with it, one on the metrics named in `alone`, and one on those of
    either kind whose items are too few to find any difference that there can be.

    None for what has no interval: of one item nothing can be told. `paired`: whether another model meets the same items, as
    generators of images do not.
    """
    notes, found = [], []
    for baseline in dict.fromkeys(m.comparison.baseline for m in metrics if m.comparison):
        compared = [(m, m.comparison) for m in metrics if m.comparison and m.comparison.baseline == baseline]
        smallest = [(m, _within(_estimate(c), _span(m))) for m, c in compared]
        found += smallest
        if said := _listed(smallest):
            notes.append(
                f"The smallest differences to {baseline or 'the baseline'} that these items find with a probability of "
                f"{POWER:.0%}: {said}; a difference that is not significant may be as large."
            )
    single = [(m, _alone(m)) for m in metrics if m.name in alone]
    found += single
    if said := _listed(single):
        notes.append(
            "The smallest differences to another model, whose scores scatter as much, that these items find with a "
            f"probability of {POWER:.0%}: {said}{PAIRED if paired else ''}."
        )
    lost = dict.fromkeys(m.name for m, smallest in found if smallest == TOO_FEW)
    if lost:
        notes.append(f"These items are too few to find any difference of {', '.join(lost)}.")
    return notes


def resolvable_alone(entry: Metric, power: float = POWER) -> float | None:
    """The smallest difference between this metric and that of another model with the same stderr, the two independent.

    (t_(1 - alpha/2) + t_power) sqrt(2) stderr with 2 (n - 1) degrees, in the metric's unit. None without an interval, of
    too few items, and where no difference on the metric's scale is as large.
    """
    found = _alone(entry, power)
    return None if found == TOO_FEW else found


def _alone(entry: Metric, power: float = POWER) -> float | None:
    """`resolvable_alone`, where TOO_FEW tells too few items from metrics without an interval."""
    if entry.value is None or entry.n < FEWEST:
        return TOO_FEW if entry.value is not None and entry.n > 1 else None
    root, value = math.sqrt(2), entry.value
    limits = [None if limit is None else value + root * (limit - value) for limit in (entry.ci_low, entry.ci_high)]
    stderr = None if entry.stderr is None else root * entry.stderr
    both = Estimate(value, 2 * entry.n - 1, stderr, limits[0], limits[1], entry.ci_level, entry.ci_method)
    low, high = _range(entry)
    # the other model's number lies within the same bounds
    return _within(both, max(value - low, high - value) if low <= value <= high else _span(entry), power)


def _span(entry: Metric) -> float:
    """The largest difference that there can be."""
    low, high = _range(entry)
    return high - low


def _range(entry: Metric) -> tuple[float, float]:
    """The metric's bounds, infinite where there are none."""
    low, high = entry.bounds
    return -math.inf if low is None else low, math.inf if high is None else high


def _within(estimate: Estimate, room: float, power: float = POWER) -> float | None:
    """The smallest difference; TOO_FEW where there is no room for it, or it has too few items; None without an interval."""
    if 1 < estimate.n < FEWEST:
        return TOO_FEW
    found = smallest_resolvable_difference(estimate, power)
    return TOO_FEW if found is not None and found > room else found


def _estimate(c: Comparison) -> Estimate:
    """The difference as an estimate; of a comparison that was written down without its standard error, the interval's counts."""
    return Estimate(c.difference, c.n, c.stderr, c.ci_low, c.ci_high, c.ci_level, c.ci_method)


def _listed(found: Sequence[tuple[Metric, float | None]]) -> str:
    """Names and numbers for a sentence; of many the smallest and the largest; empty without any."""
    told = [(entry.name, value) for entry, value in found if value and value != TOO_FEW]
    if len(told) <= LISTED:
        return ", ".join(f"{name} {value:.3g}" for name, value in told)
    known = sorted(told, key=lambda pair: pair[1])
    (low_name, low), (high_name, high) = known[0], known[-1]
    return f"from {low:.3g} ({low_name}) to {high:.3g} ({high_name}) over {len(known)} metrics"
