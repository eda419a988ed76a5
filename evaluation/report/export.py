"""A leaderboard as JSON, CSV and Markdown. JSON is the source; text in CSV and Markdown is made harmless."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from evaluation.report.leaderboard import Leaderboard
from evaluation.report.paired import PairedBoard
from evaluation.report.text import csv_text, markdown_text
from evaluation.report.views import board_view, unit_of
from launch.config import to_dict

JSON_VERSION = 1
CSV_FIELDS = [
    "leaderboard", "subject", "kind", "metric", "value", "ci_low", "ci_high", "ci_level", "ci_method", "n", "unit",
    "higher_is_better", "rank", "baseline", "suite", "dataset", "protocol", "description", "note",
]  # fmt: skip


def to_json(
    boards: Sequence[Leaderboard], warnings: Sequence[str], paired: Sequence[PairedBoard] = ()
) -> dict[str, Any]:
    """Everything in the leaderboards as JSON-able values, raw and unrounded; with the paired differences, where given."""
    return encodable(
        {
            "schema_version": JSON_VERSION,
            "warnings": list(warnings),
            "paired": {found.title: _paired_record(found) for found in paired},
            "leaderboards": [
                {
                    "title": board.title,
                    "primary": board.primary.key if board.primary else None,
                    "columns": [dataclasses.asdict(column) for column in board.columns],
                    "rows": [
                        {
                            "name": row.name,
                            "kind": row.kind,
                            "reference": row.reference,
                            "cells": {
                                key: {
                                    "rank": cell.rank,
                                    "tied": cell.tied,
                                    "ranks": [cell.ranks.best, cell.ranks.worst] if cell.ranks else None,
                                    **dataclasses.asdict(cell.metric),
                                }
                                for key, cell in row.cells.items()
                            },
                        }
                        for row in board.rows
                    ],
                }
                for board in boards
            ],
        }
    )


def _paired_record(paired: PairedBoard) -> list[dict[str, Any]]:
    """The difference of each pair of entries, once."""
    return [
        {"column": c.column.key, "ours": a, "theirs": b, "test": d.test, "p_value": d.p_value, **to_dict(d.estimate)}
        for c in paired.columns
        for (a, b), d in c.differences.items()
        if c.names.index(a) < c.names.index(b)
    ]


def encodable(value: Any) -> Any:
    """Lone surrogates, which UTF-8 cannot hold, as U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    return [encodable(item) for item in value] if isinstance(value, (list, tuple)) else value


def to_csv(boards: Sequence[Leaderboard]) -> str:
    """One line for each number: long form, raw values, dots for decimals."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for board in boards:
        for row in board.rows:
            for column in board.columns:
                if cell := row.cells.get(column.key):
                    m = cell.metric
                    values = [
                        board.title, row.name, row.kind, m.name, m.value, m.ci_low, m.ci_high, m.ci_level, m.ci_method,
                        m.n, m.unit, m.higher_is_better, cell.rank, m.baseline, column.suite,
                        board.results[cell.source].protocol.dataset, column.protocol, m.description, m.note,
                    ]  # fmt: skip
                    writer.writerow([csv_text(v) if isinstance(v, str) else v for v in values])
    return stream.getvalue()


def to_markdown(boards: Sequence[Leaderboard], warnings: Sequence[str], title: str) -> str:
    """The headline tables with intervals and rank groups, and the warnings."""
    parts = [f"# {markdown_text(title)}", ""]
    for board in boards:
        view = board_view(board, {row.name: 0 for row in board.rows})
        heads = ["Model"]
        for column in view.table.columns:
            unit = f" ({unit_of(column)})" if column.unit else ""
            heads.append(f"{markdown_text(column.full_title)}{markdown_text(unit)} {column.arrow}".strip())
        parts += [f"## {markdown_text(board.title)}", ""]
        if view.sentence:
            parts += [markdown_text(view.sentence), ""]
        parts += [_line(heads), _line(["---"] + ["---:"] * len(view.table.columns))]
        for row in view.table.rows:
            cells = []
            for cell in row.cells:
                rank = f"({cell.rank})" if cell.rank else ""
                cells.append(" ".join(markdown_text(t) for t in (cell.value or cell.note, cell.interval, rank) if t))
            name = markdown_text(row.name)
            parts.append(_line([f"*{name}*" if row.reference else name, *cells]))
        parts.append("")
    parts.append("In brackets 95 % intervals; in parentheses the rank of a group of overlapping intervals (= shared).")
    if warnings:
        parts += ["", "## Read this first", "", *(f"- {markdown_text(line)}" for line in warnings)]
    return "\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
