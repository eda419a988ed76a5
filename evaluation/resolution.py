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
from evaluation.statistics.power import POWER

LISTED = 8
"""So many metrics are named one by one; of more (the tasks of a large group), the range."""


def resolution_notes(metrics: Sequence[Metric], alone: Sequence[str] = ()) -> list[str]:
    """A sentence for each baseline, on the metrics compared with it, and one on the metrics named in `alone`.

    None for what has no interval: of one item nothing can be told.
    """
    notes = []
    for baseline in dict.fromkeys(m.comparison.baseline for m in metrics if m.comparison):
        compared = [(m.name, m.comparison) for m in metrics if m.comparison and m.comparison.baseline == baseline]
        if said := _listed([(name, smallest_resolvable_difference(_estimate(c))) for name, c in compared]):
            notes.append(
                f"The smallest differences to {baseline or 'the baseline'} that these items find with a probability of "
                f"{POWER:.0%}: {said}; a difference that is not significant may be as large."
            )
    if said := _listed([(m.name, resolvable_alone(m)) for m in metrics if m.name in alone]):
        notes.append(
            "The smallest differences to another model, whose scores scatter as much, that these items find with a "
            f"probability of {POWER:.0%}: {said}; compared item by item, sqrt(1 - r) of that where the models' items "
            "correlate by r."
        )
    return notes


def resolvable_alone(entry: Metric, power: float = POWER) -> float | None:
    """The smallest difference between this metric and that of another model with the same stderr, the two independent.

    (t_(1 - alpha/2) + t_power) sqrt(2) stderr with 2 (n - 1) degrees, in the metric's unit; None without an interval.
    """
    if entry.value is None or entry.n < 2:
        return None
    root, value = math.sqrt(2), entry.value
    limits = [None if limit is None else value + root * (limit - value) for limit in (entry.ci_low, entry.ci_high)]
    stderr = None if entry.stderr is None else root * entry.stderr
    both = Estimate(value, 2 * entry.n - 1, stderr, limits[0], limits[1], entry.ci_level, entry.ci_method)
    return smallest_resolvable_difference(both, power)


def _estimate(c: Comparison) -> Estimate:
    """The difference as an estimate; of a comparison that was written down without its standard error, the interval's counts."""
    return Estimate(c.difference, c.n, c.stderr, c.ci_low, c.ci_high, c.ci_level, c.ci_method)


def _listed(found: Sequence[tuple[str, float | None]]) -> str:
    """Names and numbers for a sentence; of many the smallest and the largest; empty without any."""
    known = sorted(((name, value) for name, value in found if value), key=lambda pair: pair[1])
    if len(known) <= LISTED:
        kept = dict(known)
        return ", ".join(f"{name} {kept[name]:.3g}" for name, _ in found if name in kept)
    (low_name, low), (high_name, high) = known[0], known[-1]
    return f"from {low:.3g} ({low_name}) to {high:.3g} ({high_name}) over {len(known)} metrics"
