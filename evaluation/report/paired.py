"""Every pair of a leaderboard's entries on the same items: differences, tests, and the rank intervals that follow. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from evaluation.report.items import BoardItems, Items
from evaluation.report.leaderboard import Column, Leaderboard
from evaluation.schema import Metric
from evaluation.statistics import (
    LEVEL,
    Difference,
    RankInterval,
    better_by_differences,
    holm,
    paired_difference,
    rank_intervals,
)


@dataclass(frozen=True)
class PairedColumn:
    """One column: the entries with scores on the same items, and the difference (first minus second) of every pair."""

    column: Column
    names: list[str]
    differences: dict[tuple[str, str], Difference]
    ranks: dict[str, RankInterval]


@dataclass(frozen=True)
class PairedBoard:
    """The columns of a leaderboard that can be compared item by item."""

    title: str
    columns: list[PairedColumn] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Every entry that may be chosen as the baseline."""
        return list(dict.fromkeys(name for column in self.columns for name in column.names))

    def ranks(self, column: str, name: str) -> RankInterval | None:
        """The paired rank interval of an entry in the column of a key."""
        return next((c.ranks.get(name) for c in self.columns if c.column.key == column), None)


@dataclass(frozen=True)
class Against:
    """An entry's difference from the chosen baseline in one column, its p-value corrected over the whole table."""

    name: str
    column: Column
    difference: Difference
    corrected: float | None

    @property
    def verdict(self) -> str:
        """`better` or `worse` than the baseline, or `not told apart`."""
        value = self.difference.estimate.value
        if self.corrected is None or self.corrected > 1 - LEVEL or value == 0:
            return "not told apart"
        return "better" if (value > 0) == self.column.higher_is_better else "worse"


def compare_pairs(board: Leaderboard, items: BoardItems) -> PairedBoard:
    """All pairs of all columns, as far as two entries were measured on the same items."""
    columns = [_pairs_of(board, column, items[column.key]) for column in board.columns if column.key in items]
    return PairedBoard(board.title, [column for column in columns if column])


def _pairs_of(board: Leaderboard, column: Column, items: dict[str, Items]) -> PairedColumn | None:
    names = _on_the_same_items([row.name for row in board.rows if row.name in items], items)
    if len(names) < 2:
        return None
    found = {(a, b): pair_difference(items[a], items[b]) for a, b in itertools.combinations(names, 2)}
    ranked = [row.name for row in board.rows if row.name in names and not row.reference]
    mirrored = {(b, a): mirrored_difference(d) for (a, b), d in found.items()}
    return PairedColumn(column, names, found | mirrored, _ranks(ranked, found, bool(column.higher_is_better)))


def _on_the_same_items(names: Sequence[str], items: dict[str, Items]) -> list[str]:
    """The largest set of entries whose items are the same, in order; the earliest of equally large ones."""
    groups: dict[frozenset[object], list[str]] = {}
    for name in names:
        groups.setdefault(frozenset(items[name].scores), []).append(name)
    return max(groups.values(), key=len, default=[])


def _ranks(
    names: list[str], found: dict[tuple[str, str], Difference], higher_is_better: bool
) -> dict[str, RankInterval]:
    place = {name: index for index, name in enumerate(names)}
    chosen = {pair: d for pair, d in found.items() if pair[0] in place and pair[1] in place}
    better = better_by_differences(
        len(names),
        [(place[a], place[b]) for a, b in chosen],
        [d.estimate.value for d in chosen.values()],
        [d.p_value for d in chosen.values()],
        higher_is_better=higher_is_better,
    )
    return dict(zip(names, rank_intervals(better), strict=True))


def pair_difference(ours: Items, theirs: Items) -> Difference:
    """Mean of ours minus theirs on the items of both, samples of one prompt being one unit."""
    keys = list(ours.scores)
    return paired_difference(
        [ours.scores[k] for k in keys], [theirs.scores[k] for k in keys], clusters=[ours.units[k] for k in keys]
    )


def mirrored_difference(found: Difference) -> Difference:
    """The same difference the other way round."""
    e = found.estimate
    low, high = (None if e.high is None else -e.high), (None if e.low is None else -e.low)
    return replace(found, estimate=replace(e, value=-e.value, low=low, high=high))


def against(paired: PairedBoard, baseline: str) -> list[Against]:
    """Every entry's differences from a baseline, p-values after Holm's correction over all of them."""
    found = [
        (name, column.column, column.differences[name, baseline])
        for column in paired.columns
        if baseline in column.names
        for name in column.names
        if name != baseline
    ]
    tested = [d.p_value for _, _, d in found if d.p_value is not None]
    adjusted = iter(holm(tested).tolist() if tested else [])
    return [Against(n, c, d, None if d.p_value is None else next(adjusted)) for n, c, d in found]


def default_baseline(paired: PairedBoard, wanted: str, metrics: Sequence[Metric]) -> str:
    """The baseline a page starts with: the one asked for, else one that a suite compared with, else the last entry."""
    names = paired.names
    if wanted in names:
        return wanted
    known = [m.baseline for m in metrics if m.baseline in names]
    return str(known[0]) if known else (names[-1] if names else "")
