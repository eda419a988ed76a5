"""What the page shows of differences: against a chosen baseline, and against an earlier run. Texts, ready for the template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evaluation.report.changes import Change, Changes
from evaluation.report.leaderboard import Column, Leaderboard
from evaluation.report.names import title_of
from evaluation.report.paired import Against, PairedBoard, against, default_baseline
from evaluation.report.text import decimals_for, format_interval, format_number, format_p, visible
from evaluation.report.views import anchor
from evaluation.schema import Metric
from evaluation.statistics import Difference


@dataclass(frozen=True)
class DifferenceRow:
    """One difference, as texts."""

    name: str
    metric: str
    difference: str
    interval: str
    n: str
    p: str
    holm: str
    test: str
    verdict: str

    def cells(self) -> list[str]:
        """The texts in the order of the table's columns."""
        return list(vars(self).values())


@dataclass(frozen=True)
class BaselineView:
    """The paired differences of a leaderboard: the table of the baseline that is shown first, and of all that may be chosen."""

    title: str
    anchor: str
    chosen: str
    tables: dict[str, list[DifferenceRow]]

    def data(self) -> dict[str, Any]:
        """For the page's script: baseline -> rows of texts."""
        return {
            visible(name): [[visible(text) for text in row.cells()] for row in rows]
            for name, rows in self.tables.items()
        }


def baseline_view(board: Leaderboard, paired: PairedBoard, wanted: str) -> BaselineView | None:
    """The tables of a leaderboard; None where no two entries were measured on the same items."""
    if not paired.names:
        return None
    metrics = [cell.metric for row in board.rows for cell in row.cells.values()]
    chosen = default_baseline(paired, wanted, metrics)
    tables = {name: [_against_row(found) for found in against(paired, name)] for name in paired.names}
    return BaselineView(board.title, f"{anchor(board.title)}-differences", chosen, tables)


def _against_row(found: Against) -> DifferenceRow:
    return _row(found.name, found.column.full_title, found.column, found.difference, found.corrected, found.verdict)


def _row(
    name: str, title: str, column: Column | Metric, found: Difference, corrected: float | None, verdict: str
) -> DifferenceRow:
    e, factor = found.estimate, 100 if column.unit == "share" else 1
    half = None if e.low is None or e.high is None else factor * (e.high - e.low) / 2
    decimals = decimals_for(half, factor * e.value)
    unit = "points" if factor == 100 else column.unit
    low, high = (None if v is None else v * factor for v in (e.low, e.high))
    return DifferenceRow(
        name=name,
        metric=f"{title} {_arrow(column.higher_is_better)}".strip(),
        difference=f"{_signed(e.value * factor, decimals)} {unit}".strip(),
        interval=format_interval(low, high, decimals),
        n=format_number(e.n, 0),
        p=format_p(found.p_value),
        holm=format_p(corrected),
        test=f"{found.test}; interval: {e.method}",
        verdict=verdict,
    )


def _signed(value: float, decimals: int) -> str:
    text = format_number(value, decimals)
    return f"+{text}" if value > 0 and any(c in "123456789" for c in text) else text


def _arrow(higher_is_better: bool | None) -> str:
    return {True: "↑", False: "↓", None: ""}[higher_is_better]


# ---------------------------------------------------------------------------------------------- an earlier run


@dataclass(frozen=True)
class ChangeRow:
    """One metric before and now, as texts."""

    before: str
    now: str
    row: DifferenceRow | None
    name: str
    metric: str
    verdict: str


@dataclass(frozen=True)
class ChangesView:
    """The section of a report: a sentence, the rows with the worst first, and what was refused."""

    against: str
    sentence: str
    rows: list[ChangeRow]
    refused: list[str]


ORDER = ("worse", "better", "not told apart", "not tested")


def changes_view(found: Changes, earlier: str) -> ChangesView:
    """The changes since an earlier run, ready for the template."""
    ordered = sorted(found.changes, key=lambda c: ORDER.index(c.verdict))
    return ChangesView(earlier, changes_sentence(found), [_change_row(c) for c in ordered], found.refused)


def changes_sentence(found: Changes) -> str:
    """What got worse, by name; or that nothing did, and how much was tested."""
    tested = sum(change.verdict != "not tested" for change in found.changes)
    if not found.worse:
        return f"Nothing got significantly worse: {tested} numbers tested, p-values after Holm's correction."
    return f"{len(found.worse)} of {tested} numbers got significantly worse: {'; '.join(map(describe, found.worse))}."


def describe(change: Change) -> str:
    """`ppo, Win rate: 66.0 to 58.0 (-8.0 points [-11.9, -4.1], p < .001 after Holm)`."""
    row = _change_row(change)
    text = visible(f"{row.name}, {row.metric}: {row.before} to {row.now}")
    if row.row is None:
        return text
    p = row.row.holm if row.row.holm.startswith("<") else f"= {row.row.holm}"
    inside = " ".join(filter(None, (row.row.difference, row.row.interval)))
    return f"{text} ({inside}, p {p} after Holm)"


def _change_row(change: Change) -> ChangeRow:
    title, entry = title_of(change.now.name), change.now
    factor = 100 if entry.unit == "share" else 1
    half = None if entry.ci_low is None or entry.ci_high is None else factor * (entry.ci_high - entry.ci_low) / 2
    decimals = decimals_for(half, factor * (entry.value or 0.0))
    before, now = (format_number(factor * (m.value or 0.0), decimals) for m in (change.before, change.now))
    row = None
    if change.difference is not None:
        row = _row(change.subject, title, entry, change.difference, change.corrected, change.verdict)
    metric = f"{title} {_arrow(entry.higher_is_better)}".strip()
    return ChangeRow(before, now, row, change.subject, metric, change.verdict)
