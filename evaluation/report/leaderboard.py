"""A leaderboard: evaluation results in, rows, columns and significance groups out. Pure.

A column is one metric under one protocol: the same name under two protocols gives two columns, never one. Within a
column entries whose intervals overlap share a rank; an entry without an interval has none. Where a suite tested its
entries against each other itself (a league), the ranks are those that it found.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evaluation.report.names import is_headline, primary_rank, short_source, title_of
from evaluation.report.text import decimals_for
from evaluation.schema import EvaluationResult, Metric, Protocol
from evaluation.statistics import RankInterval, better_by_intervals, rank_intervals, significance_groups
from launch.config import to_dict
from launch.files import canonical_json, sha256_text

FAMILIES: dict[str, tuple[str, ...]] = {
    "Language models": ("language model", "completions"),
    "Reward models": ("reward model",),
    "Image generators": ("image generator", "images"),
    "Detectors of generated images": ("detector",),
    "Judges": ("judge",),
}
REFERENCE_KINDS = ("images",)
"""Kinds of subjects that are yardsticks: shown, and not ranked."""
SMALL_N = 30
SHOWN_FIELDS = 2
LONGEST_VALUE = 12
"""Of the fields in which two protocols of one title and source differ: so many are shown, longer values as a hash."""


@dataclass(frozen=True)
class Column:
    """One metric under one protocol."""

    key: str
    name: str
    title: str
    where: str
    """What tells two columns of one title apart: the data source, and where that is one, too, what else differs."""
    suite: str
    dataset: str
    """For people; the source of one number stands in the protocol of its result."""
    protocol: str
    unit: str
    higher_is_better: bool | None
    description: str
    baseline: str | None
    headline: bool
    decimals: int

    @property
    def full_title(self) -> str:
        """The title, with the data source where two columns share it."""
        return f"{self.title} ({self.where})" if self.where else self.title

    @property
    def arrow(self) -> str:
        """The direction of better: up, down, or nothing."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]

    @property
    def orders(self) -> tuple[str, str]:
        """How the two orders of the column are called, the one that a first click gives first."""
        return ("highest first", "lowest first") if self.higher_is_better is None else ("best first", "worst first")


@dataclass(frozen=True)
class Cell:
    """A metric of one subject, and the rank of its significance group in the column (None: not ranked)."""

    metric: Metric
    rank: int | None = None
    tied: bool = False
    ranks: RankInterval | None = None
    """The ranks that it may truly have, from the suite's own tests or from intervals that do not overlap."""
    source: int = 0
    """The place of its result among those that the leaderboard was made of."""


@dataclass(frozen=True)
class Row:
    """One subject. `reference` rows are yardsticks (real images, say) that are not ranked."""

    name: str
    kind: str
    reference: bool
    cells: dict[str, Cell] = field(default_factory=dict)


Place = tuple[str, str]
"""Subject and column key."""
Measured = tuple[EvaluationResult, Metric, int]
"""A metric, its result, and the place of that result among those given."""


class Leaderboard:
    """The results of one family of subjects as a table.

    `columns` begin with the headline metrics, `rows` are in the order of `primary`, the column that decides; rows
    within one significance group have the same rank there.
    """

    def __init__(self, results: Sequence[EvaluationResult], title: str = "Leaderboard") -> None:
        self.title = title
        self.results = list(results)
        self.warnings: list[str] = []
        newest = self._newest(distinct_names(results))
        self.columns = self._columns(newest)
        self.primary = self._primary()
        self.rows = self._ordered(self._rows(newest))
        self.warnings += _warnings(self)

    def column(self, key: str) -> Column:
        """The column of a key."""
        return next(column for column in self.columns if column.key == key)

    @property
    def headline(self) -> list[Column]:
        """The columns for the first table: the headline metrics, or the first six where none is known as such.

        Where two suites measure one metric (the length of completions, say) the suite that covers more rows counts.
        """
        chosen = [c for c in self.columns if c.headline] or self.columns[:6]
        suite = {c.name: c.suite for c in sorted(chosen, key=self._covered)}  # the last one, with most rows, stays
        return [c for c in chosen if c.suite == suite[c.name]]

    def _covered(self, column: Column) -> int:
        return sum(column.key in row.cells for row in self.rows)

    # ------------------------------------------------------------------------------------------ building

    def _newest(self, results: Sequence[EvaluationResult]) -> dict[Place, Measured]:
        """The newest metric of each place; a warning names what an older one was dropped for."""
        newest: dict[Place, Measured] = {}
        for source in sorted(range(len(results)), key=lambda i: results[i].created):
            result = results[source]
            for entry in result.metrics:
                place = (result.subject.name, column_key(result, entry))
                before = newest.get(place)
                if before and before[1] != entry:
                    self.warnings.append(
                        f"{result.subject.name}: {entry.name} was measured twice under one protocol; the newer counts "
                        f"({result.created})."
                    )
                newest[place] = (result, entry, source)
        return newest

    def _columns(self, newest: dict[Place, Measured]) -> list[Column]:
        found: dict[str, list[tuple[EvaluationResult, Metric]]] = {}
        for (_, key), (result, entry, _) in newest.items():
            found.setdefault(key, []).append((result, entry))
        columns = [_column(key, pairs) for key, pairs in found.items()]
        columns = _told_apart(columns, {key: pairs[0][0].protocol for key, pairs in found.items()})
        return sorted(columns, key=lambda c: primary_rank(c.name))

    def _primary(self) -> Column | None:
        directed = [c for c in self.columns if c.higher_is_better is not None]
        return directed[0] if directed else None

    def _rows(self, newest: dict[Place, Measured]) -> list[Row]:
        rows: dict[str, Row] = {}
        for (name, key), (result, entry, source) in newest.items():
            kind = result.subject.kind
            row = rows.setdefault(name, Row(name, kind, kind in REFERENCE_KINDS))
            row.cells[key] = Cell(entry, source=source)
        for column in self.columns:
            _rank(column, [row for row in rows.values() if not row.reference])
        return list(rows.values())

    def _ordered(self, rows: list[Row]) -> list[Row]:
        def place(row: Row) -> tuple[object, ...]:
            cell = row.cells.get(self.primary.key) if self.primary else None
            value = cell.metric.value if cell else None
            if cell is None or value is None or self.primary is None:
                return (row.reference, float("inf"), 0.0, row.name)
            better = -value if self.primary.higher_is_better else value
            return (row.reference, cell.rank or float("inf"), better, row.name)

        return sorted(rows, key=place)


def distinct_names(results: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    """The results, with a short hash behind the name where one name stands for different contents in one family.

    A family is one table, and may hold several kinds: a model, and completions of which nobody knows who wrote them.
    """
    family = {kind: title for title, kinds in FAMILIES.items() for kind in kinds}
    contents: dict[tuple[str, str], set[str]] = {}
    for result in results:
        subject = result.subject
        contents.setdefault((subject.name, family[subject.kind]), set()).add(subject.sha256)
    return [
        replace(r, subject=replace(r.subject, name=f"{r.subject.name} ({r.subject.sha256[:6]})"))
        if len(contents[r.subject.name, family[r.subject.kind]]) > 1
        else r
        for r in results
    ]


def column_key(result: EvaluationResult, entry: Metric) -> str:
    """Suite, metric and protocol: equal keys may stand in one column."""
    return f"{result.suite}/{entry.name}#{protocol_hash(result.protocol)}"


def protocol_hash(protocol: Protocol) -> str:
    """Twelve hex digits that are equal for comparable protocols."""
    return sha256_text(canonical_json(_comparable_record(protocol)))[:12]


def differing_fields(protocols: Sequence[Protocol]) -> list[str]:
    """The names of the fields in which protocols differ, `settings.ties` for those inside of a mapping."""
    records = [_comparable_record(p) for p in protocols]
    names: list[str] = []
    for key in dict.fromkeys(k for record in records for k in record):
        values = [record.get(key) for record in records]
        if all(isinstance(value, dict) for value in values):
            inner = dict.fromkeys(k for value in values if isinstance(value, dict) for k in value)
            parts = [k for k in inner if not _equal([v.get(k) for v in values if isinstance(v, dict)])]
            names += [f"{key}.{part}" for part in parts]
        elif not _equal(values):
            names.append(key)
    return names


def _equal(values: Sequence[object]) -> bool:
    return all(value == values[0] for value in values)


def _comparable_record(protocol: Protocol) -> dict[str, Any]:
    """What two results must share to be compared.

    Left out is what each subject has of its own, the seeds of its samples and the hash of its completions, and where data
    and judge lie, which their content tells: another folder is no other protocol. A split stays (`::eval`).
    """
    record = to_dict(protocol)
    record.pop("seeds")
    record["settings"].pop("completions_sha256", None)
    if protocol.dataset_sha256:
        record["dataset"] = "".join(protocol.dataset.partition("::")[1:])
    if protocol.judge and protocol.judge.sha256:
        record["judge"].pop("path")
    return record


def _column(key: str, pairs: list[tuple[EvaluationResult, Metric]]) -> Column:
    result, entry = pairs[0]
    widths = [(m.ci_high - m.ci_low) / 2 for _, m in pairs if m.ci_high is not None and m.ci_low is not None]
    scale = 100 if entry.unit == "share" else 1
    values = [abs(m.value) for _, m in pairs if m.value is not None]
    half = statistics.median([w for w in widths if w > 0] or [0.0])
    return Column(
        key=key,
        name=entry.name,
        title=title_of(entry.name),
        where="",
        suite=result.suite,
        dataset=_named([r.protocol.dataset for r, _ in pairs]),
        protocol=protocol_hash(result.protocol),
        unit=entry.unit,
        higher_is_better=entry.higher_is_better,
        description=entry.description,
        baseline=entry.baseline,
        headline=is_headline(entry.name),
        decimals=decimals_for(half * scale, scale * max(values, default=0.0)),
    )


def _named(datasets: Sequence[str]) -> str:
    """The data source of a column; where its entries lie in files of their own with equal content, that is said."""
    others = len(set(datasets)) - 1
    return f"{datasets[0]} and {others} more with the same content" if others else datasets[0]


def _told_apart(columns: Sequence[Column], protocols: Mapping[str, Protocol]) -> list[Column]:
    """The columns, those of one title with their data source, and with what else differs where that is one, too."""
    titles = Counter(c.title for c in columns)
    named = [replace(c, where=short_source(c.dataset)) if titles[c.title] > 1 else c for c in columns]
    groups: dict[str, list[Column]] = {}
    for column in named:
        groups.setdefault(column.full_title, []).append(column)
    return [replace(c, where=", ".join([c.where, *_differences(c, groups[c.full_title], protocols)])) for c in named]


def _differences(column: Column, others: Sequence[Column], protocols: Mapping[str, Protocol]) -> list[str]:
    """What a column has of its own among those of its title: the suite, else the first fields of its protocol."""
    if len({other.suite for other in others}) > 1:
        return [column.suite]
    record = _comparable_record(protocols[column.key])
    shown = []
    for name in differing_fields([protocols[other.key] for other in others])[:SHOWN_FIELDS]:
        key, _, inner = name.partition(".")
        value = str(record[key].get(inner) if inner else record[key])
        shown.append(f"{inner or key} {value if len(value) <= LONGEST_VALUE else sha256_text(value)[:6]}")
    return shown


def _rank(column: Column, rows: list[Row]) -> None:
    """Fill in the ranks of a column, in place: those that its suite found, else those of the intervals."""
    if column.higher_is_better is None:
        return
    measured = [row for row in rows if column.key in row.cells]
    if len(measured) > 1 and all(tested(row.cells[column.key].metric) for row in measured):
        _take_ranks(column, measured)
        return
    ranked = [r for r in rows if column.key in r.cells and r.cells[column.key].metric.ci_low is not None]
    if len(ranked) < 2:
        return
    metrics = [row.cells[column.key].metric for row in ranked]
    lows = [m.ci_low for m in metrics if m.ci_low is not None]
    highs = [m.ci_high for m in metrics if m.ci_high is not None]
    groups = significance_groups(lows, highs, column.higher_is_better)
    possible = rank_intervals(better_by_intervals(lows, highs, column.higher_is_better))
    for row, rank, ranks in zip(ranked, groups, possible, strict=True):
        row.cells[column.key] = replace(row.cells[column.key], rank=rank, tied=groups.count(rank) > 1, ranks=ranks)


def tested(entry: Metric) -> bool:
    """Whether the suite that made a number ranked it by tests of its own; these see more than intervals do."""
    return {"rank_best", "rank_worst", "group"} <= set(entry.extra)


def _take_ranks(column: Column, rows: list[Row]) -> None:
    extras = [row.cells[column.key].metric.extra for row in rows]
    groups = [extra["group"] for extra in extras]
    for row, extra in zip(rows, extras, strict=True):
        ranks = RankInterval(extra["rank_best"], extra["rank_worst"])
        tied = groups.count(extra["group"]) > 1
        row.cells[column.key] = replace(row.cells[column.key], rank=extra["group"], tied=tied, ranks=ranks)


def leaderboards(results: Sequence[EvaluationResult]) -> list[Leaderboard]:
    """One leaderboard for each family of subjects that has results."""
    boards = []
    for title, kinds in FAMILIES.items():
        chosen = [result for result in results if result.subject.kind in kinds]
        if chosen:
            boards.append(Leaderboard(chosen, title))
    return boards


# ---------------------------------------------------------------------------------------------- warnings


def _warnings(board: Leaderboard) -> list[str]:
    return [*_missing_intervals(board), *_small_samples(board), *_protocols(board), *_wins_by_length(board)]


def _missing_intervals(board: Leaderboard) -> list[str]:
    names = [
        column.name
        for column in board.columns
        if column.higher_is_better is not None
        and any(
            row.cells[column.key].metric.ci_low is None and row.cells[column.key].metric.value is not None
            for row in board.rows
            if column.key in row.cells
        )
    ]
    return [f"Without an interval, and so not ranked: {', '.join(dict.fromkeys(names))}."] if names else []


def _small_samples(board: Leaderboard) -> list[str]:
    small: dict[tuple[str, int], None] = {}
    for column in board.columns:
        for row in board.rows:
            cell = row.cells.get(column.key)
            if cell and cell.metric.value is not None and cell.metric.n < SMALL_N and cell.metric.ci_low is not None:
                small[column.name, cell.metric.n] = None
    listed = [f"{name} (n = {n})" for name, n in small]
    return [f"Few items, so wide intervals: {', '.join(listed)}."] if listed else []


def _protocols(board: Leaderboard) -> list[str]:
    """One name under several protocols: never merged; the sentence says in what the protocols differ."""
    protocols: dict[tuple[str, str], dict[str, Protocol]] = {}
    for row in board.rows:
        for key, cell in row.cells.items():
            column = board.column(key)
            protocols.setdefault((column.suite, column.name), {})[key] = board.results[cell.source].protocol
    several = [
        f"{name} ({len(found)}, which differ in {', '.join(differing_fields(list(found.values())))})"
        for (_, name), found in protocols.items()
        if len(found) > 1
    ]
    return (
        [f"Measured under several protocols, so in separate columns and not compared: {', '.join(several)}."]
        if several
        else []
    )


def _wins_by_length(board: Leaderboard) -> list[str]:
    """A win rate above one half whose length-controlled rate is not."""
    warnings = []
    for row in board.rows:
        found = {c.metric.name: c.metric for c in row.cells.values()}
        raw = [m for name, m in found.items() if name == "win_rate" and (m.ci_low or 0) > 0.5]
        controlled = [m for name, m in found.items() if name == "win_rate_length_controlled"]
        if raw and controlled and all(m.ci_low is not None and m.ci_low <= 0.5 for m in controlled):
            warnings.append(
                f"{row.name} wins against {raw[0].baseline or 'its baseline'}, and does not where lengths are equal: a win by length."
            )
    return warnings
