"""Tables of a report: paired comparisons, the detector matrix, and every number with its protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluation.report.commands import Origin
from evaluation.report.leaderboard import Leaderboard
from evaluation.report.text import decimals_for, format_interval, format_number, format_p
from evaluation.report.views import anchor, number_anchor
from evaluation.schema import EvaluationResult, Metric
from evaluation.statistics import holm
from launch.config import to_dict


@dataclass(frozen=True)
class ComparisonRow:
    """A paired difference, as texts."""

    name: str
    metric: str
    baseline: str
    difference: str
    unit: str
    interval: str
    n: int
    p: str
    holm: str
    test: str


def comparison_rows(boards: Sequence[Leaderboard]) -> list[ComparisonRow]:
    """Every paired comparison of the headline columns, its p-value corrected over all that are shown."""
    found = [
        (row.name, column, cell.metric)
        for board in boards
        for column in board.headline
        for row in board.rows
        if (cell := row.cells.get(column.key)) and cell.metric.comparison
    ]
    tested = [m.comparison.p_value for _, _, m in found if m.comparison and m.comparison.p_value is not None]
    adjusted = iter(holm(tested).tolist() if tested else [])
    rows = []
    for name, column, entry in found:
        c = entry.comparison
        if c is None:
            continue
        factor = 100 if column.unit == "share" else 1
        low, high = (None if v is None else v * factor for v in (c.ci_low, c.ci_high))
        sign = "+" if c.difference > 0 else ""
        difference = f"{sign}{format_number(c.difference * factor, column.decimals)}"
        unit = "points" if factor == 100 else column.unit
        interval = format_interval(low, high, column.decimals)
        corrected = format_p(None if c.p_value is None else next(adjusted))
        rows.append(
            ComparisonRow(
                name=name,
                metric=column.full_title,
                baseline=c.baseline,
                difference=difference,
                unit=unit,
                interval=interval,
                n=c.n,
                p=format_p(c.p_value),
                holm=corrected,
                test=f"{c.test}; interval: {c.ci_method}" if c.ci_method else c.test,
            )
        )
    return rows


@dataclass(frozen=True)
class NumberRow:
    """One metric, as texts."""

    name: str
    arrow: str
    value: str
    interval: str
    n: int
    method: str
    description: str
    note: str
    anchor: str = ""


def number_row(entry: Metric, prefix: str = "") -> NumberRow:
    """A metric in its own unit, at the precision of its interval."""
    half = (entry.ci_high - entry.ci_low) / 2 if entry.ci_high is not None and entry.ci_low is not None else None
    decimals = decimals_for(half, entry.value or 0.0)
    arrow = {True: "↑", False: "↓", None: ""}[entry.higher_is_better]
    value = format_number(entry.value, decimals) + (f" {entry.unit}" if entry.unit else "")
    interval = format_interval(entry.ci_low, entry.ci_high, decimals)
    return NumberRow(
        prefix + entry.name, arrow, value, interval, entry.n, entry.ci_method, entry.description, entry.note
    )


@dataclass(frozen=True)
class Matrix:
    """A square of detectors and generators."""

    title: str
    anchor: str
    text: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[NumberRow]]]


def has_matrix(result: EvaluationResult) -> bool:
    return any(part.group == "trained on" for part in result.slices)


def matrix_of(result: EvaluationResult) -> Matrix:
    """AUC of a detector trained on each generator (rows) and tested on every one (columns)."""
    parts = [part for part in result.slices if part.group == "trained on"]
    control = next((m for m in result.metrics if m.name == "auc_control"), None)
    text = (
        f"AUC of the {result.subject.name}: each row trained on one generator, tested on held-out images of every one. "
        "1 is certain, .5 is chance, below .5 the sign turns around on a generator that was not seen."
    )
    if control is not None:
        row = number_row(control)
        text += f" Control, real against real: {row.value} {row.interval}."
    columns = [entry.name.removeprefix("auc on ") for entry in parts[0].metrics]
    rows = [(part.name, [number_row(entry) for entry in part.metrics]) for part in parts]
    title = "Telling generated from real"
    return Matrix(title, anchor(f"{title} {result.subject.name}"), text, "Trained on", columns, rows)


@dataclass(frozen=True)
class EvaluationView:
    """One results.json in full."""

    subject: str
    suite: str
    dataset: str
    notes: list[str]
    metrics: list[NumberRow]
    pairs: list[tuple[str, str]]
    anchor: str = ""
    origin: Origin | None = None


def evaluation_view(result: EvaluationResult, fragment: str = "", origin: Origin | None = None) -> EvaluationView:
    """All metrics, those of slices too, the protocol in full, and the command; `fragment` is what links to it."""
    rows = [replace(number_row(m), anchor=number_anchor(fragment, i)) for i, m in enumerate(result.metrics)]
    rows += [number_row(m, f"{part.group} {part.name}: ") for part in result.slices for m in part.metrics]
    subject, record = result.subject, to_dict(result.protocol)
    pairs = [("subject", f"{subject.kind}; {subject.path}"), ("subject sha256", subject.sha256)]
    pairs += [(f"protocol: {key.replace('_', ' ')}", flat(value)) for key, value in record.items()]
    pairs += [("parents", flat(subject.parents)), ("versions", flat(result.versions)), ("written", result.created)]
    pairs += [("smallest differences", " ".join(result.resolution))]
    shown = [(name, value) for name, value in pairs if value]
    dataset, notes = result.protocol.dataset, result.notes
    return EvaluationView(subject.name, result.suite, dataset, notes, rows, shown, fragment, origin)


def flat(value: Any) -> str:
    """A nested value on one line: `key value, key value`."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {flat(item)}" for key, item in value.items() if item not in (None, "", [], {}))
    if isinstance(value, (list, tuple)):
        return " ".join(flat(item) for item in value)
    return "" if value is None else str(value)
