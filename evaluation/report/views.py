"""What the page shows of leaderboards: texts and dot plots, ready for the template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup

from evaluation.report.charts import Scale, whisker
from evaluation.report.leaderboard import Column, Leaderboard, Row, tested
from evaluation.report.paired import PairedBoard
from evaluation.report.text import format_interval, format_number
from evaluation.schema import Metric
from evaluation.statistics import RankInterval

COLORS = 16
"""Eight colours, and the same with squares for dots and dashes for lines."""
CHANCE = {
    **{"win_rate": 0.5, "auc": 0.5, "accuracy_frozen": 0.5},
    **{"crows_pairs_stereotype": 50.0, "stereoset_ss": 50.0, "winogender_gender_gap": 0.0, "bbq_bias": 0.0},
}
"""Metrics (by the beginning of their names) whose neutral value a chart marks: chance, or no bias either way."""


def chance_of(name: str) -> float | None:
    """The neutral value of a metric; None for one that has none."""
    return next((value for start, value in CHANCE.items() if name.startswith(start)), None)


def anchor(text: str) -> str:
    """A fragment identifier from a text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"


def scale_of(column: Column) -> int:
    """100 for shares, which a page shows in percent."""
    return 100 if column.unit == "share" else 1


def unit_of(column: Column) -> str:
    """The unit as a page shows it."""
    return "%" if column.unit == "share" else column.unit


@dataclass(frozen=True)
class CellView:
    """One cell: its texts; an empty one has only a note that says why."""

    label: str
    value: str
    interval: str = ""
    rank: str = ""
    first: bool = False
    change: str = ""
    note: str = ""
    ranks: str = ""
    """The ranks that the entry may truly have; empty where that is one, or unknown."""
    raw: float | None = None
    """The value that the page sorts by."""
    link: str = ""
    """The fragment of the number's own entry: its method, protocol and command."""


@dataclass(frozen=True)
class Sources:
    """What a leaderboard's cells are made of beside their metrics: paired comparisons, and where each number is told of."""

    paired: PairedBoard | None = None
    anchors: Mapping[int, str] = field(default_factory=dict)
    """id of a result -> the fragment of its entry on the page."""


NO_SOURCES = Sources()


@dataclass(frozen=True)
class RowView:
    """One row of a leaderboard."""

    name: str
    reference: bool
    color: int
    cells: list[CellView]
    leads: bool = False
    """Whether it is in the first group of the column that decides."""


@dataclass(frozen=True)
class Mark:
    """One row of a dot plot."""

    name: str
    reference: bool
    svg: Markup
    value: str
    interval: str
    n: int


@dataclass(frozen=True)
class Figure:
    """A dot plot of one metric."""

    column: Column
    unit: str
    marks: list[Mark]
    low: str
    high: str
    chance: str
    caption: str = ""
    """The category, in small multiples."""


@dataclass(frozen=True)
class TableView:
    """Some columns of a leaderboard."""

    caption: str
    columns: list[Column]
    rows: list[RowView]


@dataclass(frozen=True)
class BoardView:
    """A leaderboard with its figures. A page sets `tables` one below the other; they are `table` in parts."""

    title: str
    anchor: str
    sentence: str
    table: TableView
    tables: list[TableView]
    figures: list[Figure]


def board_view(board: Leaderboard, colors: dict[str, int], sources: Sources = NO_SOURCES) -> BoardView:
    """The headline columns as a table, and a figure for each of them."""
    columns = board.headline
    safety = ("safety", "bias")
    parts = [("", [c for c in columns if c.suite not in safety]), ("Safety", [c for c in columns if c.suite in safety])]
    return BoardView(
        title=board.title,
        anchor=anchor(board.title),
        sentence=f"{sentence(board)} {first_by_pairs(board, sources.paired)}".strip(),
        table=table_view(board, "", columns, colors, sources),
        tables=[table_view(board, caption, part, colors, sources) for caption, part in parts if part],
        figures=[figure for column in columns if (figure := figure_of(board, column, colors))],
    )


def table_view(
    board: Leaderboard, caption: str, columns: list[Column], colors: dict[str, int], sources: Sources = NO_SOURCES
) -> TableView:
    """The rows of some columns; a row that has none of them, not even as their baseline, is left out."""

    def cells(row: Row) -> list[CellView]:
        return [_with_sources(cell_view(row, column), board, row, column, sources) for column in columns]

    def leads(row: Row) -> bool:
        return board.primary is not None and board.primary.key in row.cells and row.cells[board.primary.key].rank == 1

    rows = [RowView(r.name, r.reference, colors[r.name], cells(r), leads(r)) for r in board.rows]
    return TableView(caption, columns, [row for row in rows if any(c.value or c.note for c in row.cells)])


def cell_view(row: Row, column: Column) -> CellView:
    """The texts of a cell; an empty one says whether the row is the column's baseline or was not measured."""
    label = f"{column.full_title} {column.arrow}".strip()
    cell = row.cells.get(column.key)
    if cell is None:
        return CellView(label, "", note="baseline" if column.baseline == row.name else "")
    entry, scale = cell.metric, scale_of(column)
    if entry.value is None:
        return CellView(label, "", note=entry.note)
    return CellView(
        label=label,
        value=format_number(entry.value * scale, column.decimals),
        interval=interval_text(entry, scale, column.decimals),
        rank="" if cell.rank is None else f"{cell.rank}{'=' if cell.tied else ''}",
        first=cell.rank == 1,
        change=_change(entry, scale, column.decimals),
        note=entry.note,
        ranks=ranks_text(cell.ranks),
        raw=entry.value,
    )


def ranks_text(ranks: RankInterval | None) -> str:
    """`ranks 1–3`; nothing where the rank is certain, which the boxed figure says."""
    return "" if ranks is None or ranks.best == ranks.worst else f"ranks {ranks.best}–{ranks.worst}"


def _with_sources(view: CellView, board: Leaderboard, row: Row, column: Column, sources: Sources) -> CellView:
    """The cell with the ranks that paired tests leave open, where there are any, and the place of its number's entry."""
    cell = row.cells.get(column.key)
    if cell is None:
        return view
    paired = sources.paired.ranks(column.key, row.name) if sources.paired else None
    ranks = view.ranks if paired is None else f"{ranks_text(paired) or f'rank {paired.best}'} by pairs"
    result = board.results[cell.source]
    link = sources.anchors.get(id(result), "")
    place = [entry.name for entry in result.metrics].index(cell.metric.name)
    return replace(view, ranks=ranks, link=number_anchor(link, place) if link else "")


def number_anchor(entry: str, place: int) -> str:
    """The fragment of one number inside the entry of its evaluation."""
    return f"{entry}-{place}"


def interval_text(entry: Metric, scale: int, decimals: int) -> str:
    """`[low, high]` of a metric in the unit of the page, or nothing."""
    if entry.ci_low is None or entry.ci_high is None:
        return ""
    return format_interval(entry.ci_low * scale, entry.ci_high * scale, decimals)


def _change(entry: Metric, scale: int, decimals: int) -> str:
    """The paired difference from the baseline, when one was computed.

    Its p-value stands in the table of comparisons alone, where it is corrected for their number.
    """
    found = entry.comparison
    if found is None:
        return ""
    sign = "+" if found.difference > 0 else ""
    return f"{sign}{format_number(found.difference * scale, decimals)} vs {found.baseline}"


def figure_of(board: Leaderboard, column: Column, colors: dict[str, int]) -> Figure | None:
    """A dot plot with whiskers of one column; None with fewer than two different values."""
    found = [(r, r.cells[column.key].metric) for r in board.rows if column.key in r.cells]
    found = [(row, entry) for row, entry in found if entry.value is not None]
    if len(found) < 2 or len({(m.value, m.ci_low, m.ci_high) for _, m in found}) == 1:
        return None
    chance = chance_of(column.name)
    ends = [v for _, m in found for v in (m.value, m.ci_low, m.ci_high) if v is not None]
    scale = Scale.of([*ends, *([chance] if chance is not None else [])], share=column.unit == "share")
    factor = scale_of(column)
    marks = [
        Mark(
            name=row.name,
            reference=row.reference,
            svg=whisker(entry.value or 0.0, entry.ci_low, entry.ci_high, scale, chance, colors[row.name]),
            value=format_number((entry.value or 0.0) * factor, column.decimals),
            interval=interval_text(entry, factor, column.decimals),
            n=entry.n,
        )
        for row, entry in found
    ]
    low, high = (format_number(v * factor, column.decimals) for v in (scale.low, scale.high))
    mark = "" if chance is None else format_number(chance * factor, 0 if factor == 100 else 1)
    return Figure(column, unit_of(column), marks, low, high, mark)


def sentence(board: Leaderboard) -> str:
    """Who is first on the deciding metric, with its interval, a tie being called a tie, and who is not compared with them."""
    return f"{_leaders(board, board.primary)} {_apart(board, board.primary)}".strip() if board.primary else ""


def _apart(board: Leaderboard, column: Column) -> str:
    """Those whose number of the deciding metric was measured under other protocols; nothing without any."""
    others = [c.key for c in board.columns if (c.name, c.suite) == (column.name, column.suite) and c.key != column.key]
    names = [r.name for r in board.rows if column.key not in r.cells and not r.reference and set(others) & set(r.cells)]
    verb = "was" if len(names) == 1 else "were"
    return f"{listed(names)} {verb} measured under another protocol and so not compared with that." if names else ""


def _leaders(board: Leaderboard, column: Column) -> str:
    ranked = [r for r in board.rows if column.key in r.cells and not r.reference]
    best = [r for r in ranked if r.cells[column.key].rank == 1]
    metric = inside_sentence(column.title) + (f" against {column.baseline}" if column.baseline else "")

    def figure(row: Row) -> str:
        view, unit = cell_view(row, column), unit_of(column)
        return f"{view.value}{f' {unit}' if unit else ''} {view.interval}".strip()

    if len(best) == 1:
        return f"{best[0].name} leads on {metric}: {figure(best[0])}."
    if best:
        named = listed([f"{row.name} {figure(row)}" for row in best])
        by_tests = all(tested(row.cells[column.key].metric) for row in best)
        why = "since no test tells them apart" if by_tests else "since their intervals overlap"
        return f"{listed([row.name for row in best])} are tied on {metric}, {why}: {named}."
    if ranked:
        return (
            f"{column.title}{metric.removeprefix(inside_sentence(column.title))}: "
            + listed([f"{row.name} {figure(row)}" for row in ranked])
            + "."
        )
    return ""


def first_by_pairs(board: Leaderboard, paired: PairedBoard | None) -> str:
    """Which of several entries that are tied by their intervals is first by tests on the same items; often none."""
    column = board.primary
    if column is None or paired is None:
        return ""
    cells = [(row.name, row.cells[column.key]) for row in board.rows if column.key in row.cells]
    tied = [name for name, cell in cells if cell.rank == 1 and cell.tied]
    ranks = {name: found for name in tied if (found := paired.ranks(column.key, name))}
    first = [name for name, found in ranks.items() if found.worst == 1]
    return f"Paired tests on the same items put {first[0]} first." if first and len(ranks) == len(tied) else ""


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def inside_sentence(title: str) -> str:
    """A title inside a sentence: names and acronyms keep their capitals."""
    keeps = title[:2].isupper() or title.startswith(("Fréchet", "Inception"))
    return title if keeps else title[:1].lower() + title[1:]
