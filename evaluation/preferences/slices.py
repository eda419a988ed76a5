"""Which rows a slice holds. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

FEWEST_IN_SLICE = 10


def rows_by_label(labels: Sequence[str]) -> dict[str, list[int]]:
    """Label -> its rows, by name, if there are at least two; labels with few rows are put together as "other"."""
    counts = Counter(labels)
    names = [label if counts[label] >= FEWEST_IN_SLICE else "other" for label in labels]
    found: dict[str, list[int]] = {name: [] for name in sorted(set(names))}
    for row, name in enumerate(names):
        found[name].append(row)
    return found if len(found) > 1 else {}
