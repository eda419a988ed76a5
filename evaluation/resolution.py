"""What a result could have seen at all: a note with the smallest differences that its comparisons resolve."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.schema import Comparison, Metric
from evaluation.statistics import Estimate, smallest_resolvable_difference
from evaluation.statistics.power import POWER


def resolution_notes(metrics: Sequence[Metric]) -> list[str]:
    """One sentence for all metrics that are compared with a baseline; none where nothing is, or no interval is known."""
    found = [
        f"{entry.name} {smallest:.2g}"
        for entry in metrics
        if entry.comparison and (smallest := smallest_resolvable_difference(_estimate(entry.comparison)))
    ]
    if not found:
        return []
    return [
        f"The smallest differences to the baseline that these items find with a probability of {POWER:.0%}: "
        f"{', '.join(found)}; a difference that is not significant may be as large."
    ]


def _estimate(c: Comparison) -> Estimate:
    """The difference as an estimate; a comparison keeps no standard error, so that the interval's counts."""
    return Estimate(c.difference, c.n, None, c.ci_low, c.ci_high, c.ci_level, c.ci_method)
