"""The leaderboards on a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.report.leaderboard import Leaderboard
from evaluation.report.text import visible
from evaluation.report.views import BoardView, CellView, board_view, unit_of


def print_leaderboard(
    boards: Sequence[Leaderboard], warnings: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print the headline tables: models across and metrics down, so that eight metrics fit into 80 columns."""
    console = console or Console()
    for board in boards:
        view = board_view(board, {row.name: 0 for row in board.rows})
        console.print()
        console.print(Text(board.title, style="bold"))
        if view.sentence:
            console.print(Text(visible(view.sentence)))
        console.print(_table(view))
    if boards:
        note = "In brackets 95 % intervals. (1=): rank of a group of entries that are not told apart."
        console.print(Text(note, style="dim"))
    for line in warnings:
        console.print(Text(f"! {visible(line)}", style="yellow"))


def to_text(boards: Sequence[Leaderboard], warnings: Sequence[str] = (), width: int = 100) -> str:
    """What `print_leaderboard` prints on a terminal of `width` columns, without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_leaderboard(boards, warnings, console)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]


def _table(view: BoardView) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for row in view.table.rows:
        table.add_column(Text(visible(row.name), style="italic" if row.reference else "bold"), justify="right")
    for index, column in enumerate(view.table.columns):
        head = Text(f"{visible(column.title)} {column.arrow}".strip())
        for line in (column.where, unit_of(column)):
            head.append(f"\n{visible(line)}" if line else "", style="dim")
        table.add_row(head, *(_cell(row.cells[index]) for row in view.table.rows))
    return table


def _cell(cell: CellView) -> Text:
    if not cell.value:
        return Text(visible(cell.note), style="dim")
    text = Text(cell.value, style="bold" if cell.first else "")
    if cell.rank:
        text.append(f" ({cell.rank})", style="cyan" if cell.first else "dim")
    if cell.interval:
        text.append(f"\n{cell.interval}", style="dim")
    return text
