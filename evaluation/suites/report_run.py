"""The work of `alignkit report`: collect the results, write the page and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.report.changes import Changes, compare_runs, to_record
from evaluation.report.collect import Collection, collect
from evaluation.report.differences import changes_sentence, changes_view
from evaluation.report.export import encodable, to_csv, to_json, to_markdown
from evaluation.report.formats import write_exports
from evaluation.report.formats.latex import to_latex
from evaluation.report.items import SampleReader, board_items
from evaluation.report.leaderboard import Leaderboard, leaderboards
from evaluation.report.notes import copy_notes, precision_notes, yardstick_notes
from evaluation.report.page import PageParts, render_page
from evaluation.report.paired import compare_pairs
from evaluation.report.samples import sample_section
from evaluation.report.terminal import print_leaderboard, to_text
from evaluation.report.text import visible
from evaluation.report.viewer import sample_sets
from evaluation.suites.report import CHANGES_FILE, ReportConfig
from launch.errors import UserError, nearest
from launch.files import write_atomic, write_json
from launch.stage import Job


def run(config: ReportConfig, job: Job) -> dict[str, Any]:
    """Write the report's files; the summary counts what is in them."""
    if not job.runtime.is_main:
        return {}
    found = collect(config.inputs, leave_out=job.output_dir)
    boards = leaderboards([entry.result for entry in found.results])
    warnings = all_warnings(found, boards)
    rows_of = SampleReader()
    changes = changes_since(config, found, rows_of)
    parts = page_parts(config, found, boards, rows_of, changes)
    write_files(job.output_dir, config, found, boards, warnings, parts)
    write_exports(job.output_dir / "exports", found, config.exports, rows_of)
    if changes:
        write_json(job.output_dir / CHANGES_FILE, encodable(to_record(changes)))
        for line in [changes_sentence(changes), *changes.refused]:
            job.say(visible(line))
    if config.show:
        print_leaderboard(boards, warnings)
    job.say(f"report: {(job.output_dir / 'index.html').resolve()}")
    subjects = sum(len(board.rows) for board in boards)
    return {
        "evaluations": len(found.results),
        "stages": len(found.stages),
        "subjects": subjects,
        "warnings": len(warnings),
    }


def write_files(
    folder: Path,
    config: ReportConfig,
    found: Collection,
    boards: Sequence[Leaderboard],
    warnings: Sequence[str],
    parts: PageParts,
) -> None:
    """The page and the leaderboards in the formats that need no other tool."""
    page = render_page(found, boards, warnings, parts, config.title)
    write_atomic(folder / "index.html", page.encode("utf-8"))
    write_json(folder / "leaderboard.json", to_json(boards, warnings, parts.paired))
    write_atomic(folder / "leaderboard.csv", to_csv(boards))
    write_atomic(folder / "leaderboard.md", to_markdown(boards, warnings, config.title))
    write_atomic(folder / "leaderboard.tex", to_latex(boards, config.title))
    write_atomic(folder / "leaderboard.txt", to_text(boards, warnings, config.width))


def page_parts(
    config: ReportConfig,
    found: Collection,
    boards: Sequence[Leaderboard],
    rows_of: SampleReader,
    changes: Changes | None,
) -> PageParts:
    """What the page shows from samples: paired differences, the viewer, chosen samples; and the changes."""
    leader = next((row.name for board in boards for row in board.rows), "")
    paired = [compare_pairs(board, board_items(board, rows_of, found.results)) for board in boards]
    names = [name for board in paired for name in board.names]
    if config.baseline and config.baseline not in names:
        raise UserError(
            f"baseline: no entry '{config.baseline}' can be compared in pairs{nearest(config.baseline, names)}"
        )
    return PageParts(
        samples=sample_section(found.results, leader, rows_of),
        paired=paired,
        baseline=config.baseline,
        sets=sample_sets(found.results, rows_of),
        changes=changes_view(changes, ", ".join(config.against)) if changes else None,
    )


def changes_since(config: ReportConfig, found: Collection, rows_of: SampleReader) -> Changes | None:
    """The changes since the earlier run; None without one. UserError when not a single number can be compared."""
    if not config.against:
        return None
    changes = compare_runs(collect(config.against).results, found.results, rows_of)
    if not changes.changes:
        why = f": {changes.refused[0]}" if changes.refused else "; give folders with results of both runs"
        raise UserError(f"against: no number of {', '.join(config.against)} can be compared with this run{why}")
    return changes


def all_warnings(found: Collection, boards: Sequence[Leaderboard]) -> list[str]:
    """Those of the leaderboards, the notes of the results with the subjects they are about, and those about the code."""
    about: dict[str, dict[str, None]] = {}
    for entry in found.results:
        for note in entry.result.notes:
            about.setdefault(note, {})[entry.result.subject.name] = None
    notes = [f"{', '.join(names)}: {note}" for note, names in about.items()]
    empty = [] if found.results else ["No evaluation lies in these folders: there are runs, but no numbers to compare."]
    copied = copy_notes([entry.result for entry in found.results])
    lines = [*yardstick_notes(boards), *copied, *(line for b in boards for line in b.warnings), *precision_notes(found)]
    return list(dict.fromkeys([*empty, *lines, *notes, *found.warnings]))
