"""The headline tables in LaTeX, one `table` for each leaderboard. Needs no package: plain rules, text symbols."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.report.leaderboard import Column, Leaderboard
from evaluation.report.text import visible
from evaluation.report.views import CellView, anchor, board_view, unit_of

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "\n": " ", "\t": " ", "\u2212": "$-$", "\u2013": "--", "\u202f": r"\,",
    "\u2191": r"$\uparrow$", "\u2193": r"$\downarrow$", "\u2026": r"\ldots{}",
    "[": "{[}", "]": "{]}",  # a bracket at the start of a cell would be read as the argument of the \\ before it
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text without any command in it: what TeX would read as one is written as the character."""
    return "".join(_ESCAPES.get(character, character) for character in visible(text))


def to_latex(boards: Sequence[Leaderboard], title: str) -> str:
    """All leaderboards, one table each, in a file to `\\input`."""
    parts = [f"% {latex_text(title)}: written by alignkit. In brackets 95 % intervals; as superscript the rank group."]
    return "\n\n".join([*parts, *(_table(board) for board in boards)]) + "\n"


def _table(board: Leaderboard) -> str:
    view = board_view(board, {row.name: 0 for row in board.rows})
    columns = view.table.columns
    lines = [
        r"\begin{table}",
        rf"\caption{{{latex_text(view.sentence or view.title)}}}",
        rf"\label{{tab:{anchor(board.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\hline",
        _line(["Model", *(_head(column) for column in columns)]),
        r"\hline",
    ]
    for row in view.table.rows:
        name = latex_text(row.name)
        lines.append(_line([rf"\textit{{{name}}}" if row.reference else name, *map(_cell, row.cells)]))
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}"])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _head(column: Column) -> str:
    unit = f" ({unit_of(column)})" if column.unit else ""
    return latex_text(f"{column.full_title}{unit} {column.arrow}".strip())


def _cell(cell: CellView) -> str:
    if not cell.value:
        return latex_text(cell.note)
    value = rf"\textbf{{{latex_text(cell.value)}}}" if cell.first else latex_text(cell.value)
    rank = rf"\textsuperscript{{{latex_text(cell.rank)}}}" if cell.rank else ""
    return f"{value}{rank} {latex_text(cell.interval)}".strip()
