"""The work of `alignkit report`: collect the results, write the page and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.report.collect import Collection, collect
from evaluation.report.export import to_csv, to_json, to_markdown
from evaluation.report.leaderboard import Leaderboard, leaderboards
from evaluation.report.notes import precision_notes, yardstick_notes
from evaluation.report.page import render_page
from evaluation.report.samples import sample_section
from evaluation.report.terminal import print_leaderboard, to_text
from evaluation.suites.report import ReportConfig
from launch.files import write_atomic, write_json
from launch.stage import Job


def run(config: ReportConfig, job: Job) -> dict[str, Any]:
    """Write the five files; the summary counts what is in them."""
    if not job.runtime.is_main:
        return {}
    found = collect(config.inputs, leave_out=job.output_dir)
    boards = leaderboards([entry.result for entry in found.results])
    warnings = all_warnings(found, boards)
    leader = next((row.name for board in boards for row in board.rows), "")
    page = render_page(found, boards, warnings, sample_section(found.results, leader), config.title)
    write_atomic(job.output_dir / "index.html", page.encode("utf-8"))
    write_json(job.output_dir / "leaderboard.json", to_json(boards, warnings))
    write_atomic(job.output_dir / "leaderboard.csv", to_csv(boards))
    write_atomic(job.output_dir / "leaderboard.md", to_markdown(boards, warnings, config.title))
    write_atomic(job.output_dir / "leaderboard.txt", to_text(boards, warnings, config.width))
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


def all_warnings(found: Collection, boards: Sequence[Leaderboard]) -> list[str]:
    """Those of the leaderboards, the notes of the results with the subjects they are about, and those about the code."""
    about: dict[str, dict[str, None]] = {}
    for entry in found.results:
        for note in entry.result.notes:
            about.setdefault(note, {})[entry.result.subject.name] = None
    notes = [f"{', '.join(names)}: {note}" for note, names in about.items()]
    empty = [] if found.results else ["No evaluation lies in these folders: there are runs, but no numbers to compare."]
    lines = [*yardstick_notes(boards), *(line for b in boards for line in b.warnings), *precision_notes(found)]
    return list(dict.fromkeys([*empty, *lines, *notes, *found.warnings]))
