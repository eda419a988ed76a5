"""The command: run the known answers, print the table, and say by the exit code whether all hold."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.selftest.registry import AREAS, Checked, run_answers
from launch.errors import UserError, nearest

EXIT_FAILED = 1
HELP = f"""alignkit evaluate selftest [AREA ...]

Compute cases whose exact result is known and compare, in seconds, without a network. Exit code 1 if one fails.

areas: {", ".join(AREAS)} (all, unless some are named)"""


def main(arguments: Sequence[str]) -> None:
    """Print the table of known answers; SystemExit with code 1 when one does not hold."""
    if any(word in ("-h", "--help") for word in arguments):
        print(HELP)
        return
    for word in arguments:
        if word not in AREAS:
            raise UserError(f"alignkit evaluate selftest: unknown area '{word}'{nearest(word, AREAS)}")
    checked, seconds = run_answers(arguments or AREAS)
    print_table(checked, seconds)
    if not all(c.holds for c in checked):
        raise SystemExit(EXIT_FAILED)


def print_table(checked: Sequence[Checked], seconds: float, console: Console | None = None) -> None:
    """One row for each answer, and a last line that counts those that hold."""
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("known answer", overflow="fold")
    for name in ("expected", "found"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("", no_wrap=True)
    before = ""
    for row in checked:
        if row.area != before:
            table.add_row(Text(row.area, style="bold"))
            before = row.area
        verdict = Text("ok", style="green") if row.holds else Text("FAILED", style="bold red")
        found = Text("error", style="red") if row.error else numbers(row.found)
        table.add_row(Text(f"{row.answer.metric}: {row.answer.case}"), numbers(row.expected), found, verdict)
    console.print(table)
    failed = [row for row in checked if not row.holds]
    console.print(f"{len(checked) - len(failed)} of {len(checked)} known answers hold ({seconds:.1f} s)")
    for row in failed:
        what = row.error or f"off by {row.deviation:.3g}, allowed {row.answer.tolerance:.3g}"
        console.print(Text(f"! {row.area}, {row.answer.metric}, {row.answer.case}: {what}", style="yellow"))


def numbers(values: Sequence[float]) -> Text:
    """Numbers at six significant digits, the first three of them."""
    return Text(" ".join(f"{value:.6g}" for value in values[:3]) + (" …" if len(values) > 3 else ""))
