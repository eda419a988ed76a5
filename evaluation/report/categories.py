"""Small multiples: one metric for each category of the items, all on one scale. And safety as two rates. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluation.report.charts import Scale, plane, whisker
from evaluation.report.leaderboard import Column, Leaderboard, column_key
from evaluation.report.names import is_headline
from evaluation.report.robustness import CURVE_GROUPS
from evaluation.report.text import format_number
from evaluation.report.views import Figure, Mark, interval_text, scale_of, unit_of
from evaluation.schema import Metric

MATRIX_GROUP = "trained on"
"""Slices that are shown as a matrix instead, as others are as curves."""
SHOWN_CATEGORIES = 12


@dataclass(frozen=True)
class CategoryView:
    """The small multiples of one metric: those shown and those folded away."""

    title: str
    group: str
    unit: str
    arrow: str
    main: list[Figure]
    more: list[Figure]


def category_views(board: Leaderboard, colors: dict[str, int]) -> list[CategoryView]:
    """The headline metrics of a leaderboard that its results give for parts of the items, where there are two parts."""
    views = []
    for column in (c for c in board.columns if is_headline(c.name)):
        for group, parts in _parts(board, column).items():
            if len(parts) > 1:
                views.append(_view(column, group, parts, colors))
    return views


def _parts(board: Leaderboard, column: Column) -> dict[str, dict[str, list[tuple[str, Metric]]]]:
    """group -> category -> the entries' metrics there."""
    found: dict[str, dict[str, list[tuple[str, Metric]]]] = {}
    for row in board.rows:
        cell = row.cells.get(column.key)
        result = board.results[cell.source] if cell else None
        if result is None or cell is None or column_key(result, cell.metric) != column.key:
            continue
        for part in result.slices:
            entry = next((m for m in part.metrics if m.name == column.name and m.value is not None), None)
            if entry and part.group not in (MATRIX_GROUP, *CURVE_GROUPS):
                found.setdefault(part.group, {}).setdefault(part.name, []).append((row.name, entry))
    return found


def _view(
    column: Column, group: str, parts: dict[str, list[tuple[str, Metric]]], colors: dict[str, int]
) -> CategoryView:
    ends = [v for marks in parts.values() for _, m in marks for v in (m.value, m.ci_low, m.ci_high) if v is not None]
    scale = Scale.of(ends, share=column.unit == "share")
    figures = [_figure(column, name, marks, scale, colors) for name, marks in sorted(parts.items())]
    cut = SHOWN_CATEGORIES if len(figures) > SHOWN_CATEGORIES + 2 else len(figures)
    return CategoryView(column.full_title, group, unit_of(column), column.arrow, figures[:cut], figures[cut:])


def _figure(
    column: Column, name: str, found: Sequence[tuple[str, Metric]], scale: Scale, colors: dict[str, int]
) -> Figure:
    factor = scale_of(column)
    marks = [
        Mark(
            name=who,
            reference=False,
            svg=whisker(entry.value or 0.0, entry.ci_low, entry.ci_high, scale, None, colors[who]),
            value=format_number((entry.value or 0.0) * factor, column.decimals),
            interval=interval_text(entry, factor, column.decimals),
            n=entry.n,
        )
        for who, entry in found
    ]
    low, high = (format_number(v * factor, column.decimals) for v in (scale.low, scale.high))
    return Figure(column, unit_of(column), marks, low, high, "", name)


# ---------------------------------------------------------------------------------------------- safety

OVER_REFUSAL, COMPLIANCE = "over_refusal_rate", "unsafe_compliance_rate"


@dataclass(frozen=True)
class SafetyPoint:
    """One entry in the plane, and its numbers as texts."""

    name: str
    color: int
    over_refusal: str
    compliance: str


@dataclass(frozen=True)
class SafetyPlane:
    """Over-refusal of safe prompts against compliance with unsafe ones: the best corner is at the lower left."""

    svg: Markup
    right: str
    top: str
    points: list[SafetyPoint]


def safety_plane(boards: Sequence[Leaderboard], colors: dict[str, int]) -> SafetyPlane | None:
    """The plane of all entries that have both rates; None without any. One protocol for each rate: the most covered."""
    found: list[tuple[str, Metric, Metric]] = []
    for board in boards:
        columns = [_most_covered(board, name) for name in (OVER_REFUSAL, COMPLIANCE)]
        for row in board.rows:
            cells = [row.cells.get(c.key) if c else None for c in columns]
            metrics = [c.metric for c in cells if c and c.metric.value is not None]
            if len(metrics) == 2:
                found.append((row.name, metrics[0], metrics[1]))
    if not found:
        return None
    across, up = (_from_zero([entry[axis] for entry in found]) for axis in (1, 2))
    points = [SafetyPoint(name, colors[name], _percent(x), _percent(y)) for name, x, y in found]
    marks = [(_ends(x), _ends(y), colors[name]) for name, x, y in found]
    return SafetyPlane(plane(marks, across, up), f"{100 * across.high:.0f}", f"{100 * up.high:.0f}", points)


def _most_covered(board: Leaderboard, name: str) -> Column | None:
    columns = [c for c in board.columns if c.name == name]
    return max(columns, key=lambda c: sum(c.key in row.cells for row in board.rows), default=None)


def _from_zero(metrics: Sequence[object]) -> Scale:
    highs = [m.ci_high if m.ci_high is not None else m.value or 0.0 for m in metrics if isinstance(m, Metric)]
    return Scale(0.0, min(1.0, max(0.05, 1.05 * max(highs))))


def _ends(entry: Metric) -> tuple[float, float | None, float | None]:
    return entry.value or 0.0, entry.ci_low, entry.ci_high


def _percent(entry: Metric) -> str:
    return f"{format_number(100 * (entry.value or 0.0), 1)} {interval_text(entry, 100, 1)}".strip()
