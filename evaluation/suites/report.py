"""`alignkit report DIR... --output_dir OUT`: results of evaluations as a page, a leaderboard, and tables.

Writes index.html (one self-contained file), leaderboard.json, leaderboard.csv, leaderboard.md and leaderboard.txt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from evaluation.report.collect import Collection, collect
from evaluation.report.export import to_csv, to_json, to_markdown
from evaluation.report.leaderboard import Leaderboard, leaderboards
from evaluation.report.notes import precision_notes, yardstick_notes
from evaluation.report.page import render_page
from evaluation.report.samples import sample_section
from evaluation.report.terminal import print_leaderboard, to_text
from launch.config import artefact, operational
from launch.entry import run_module, run_stage_command
from launch.errors import UserError, nearest
from launch.files import read_json, write_atomic, write_json
from launch.ranges import Range
from launch.stage import Job, Stage, StageConfig


@dataclass(kw_only=True)
class ReportConfig(StageConfig):
    """The report of everything under some folders."""

    inputs: list[str] = artefact([])
    """Folders with results.json, provenance.json and metrics.jsonl, at any depth. Parents of stages are found by
    themselves."""
    title: str = "Evaluation report"
    """Title of the page."""
    show: bool = operational(True)
    """Print the leaderboards on the terminal. In a lifecycle `alignkit run` shows them at its end instead."""
    width: Annotated[int, Range(20)] = 100
    """Columns of leaderboard.txt."""

    def check(self) -> None:
        if not self.inputs:
            raise ValueError("inputs: is empty; name folders, as in `alignkit report DIR... --output_dir OUT`")


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


def main(arguments: Sequence[str]) -> None:
    """The command line: folders first, then the options of the stage. An earlier report in OUT is replaced."""
    words = list(arguments)
    folders: list[str] = []
    while words and not words[0].startswith("-"):
        folders.append(words.pop(0))
    if folders:
        if any("," in folder for folder in folders):
            raise UserError("inputs: a folder's name holds a comma; name it in a recipe, as an entry of `inputs:`")
        for folder in map(Path, folders):
            _check_folder(folder)
        words += ["--inputs", ",".join(folders)]
    if _holds_a_report(words):
        words += ["--overwrite"]
    run_stage_command(STAGE, words)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        near = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        hint = next((h for h in [nearest(folder.name, near)] if "mean" in h), "")
        what = "is a file" if folder.exists() else f"no such folder{hint}"
        raise UserError(f"inputs: {folder}: {what}; give folders that hold runs of alignkit, at any depth")


def _holds_a_report(words: Sequence[str]) -> bool:
    """Whether --output_dir names the folder of an earlier report: derived from the results, so it may be replaced."""
    folder = next((b for a, b in pairwise(words) if a.replace("-", "_") == "__output_dir"), "")
    record = Path(folder) / "run.json"
    asked = any(word.startswith("--overwrite") for word in words)
    return bool(folder) and not asked and record.is_file() and read_json(record).get("stage") == "report"


STAGE = Stage(name="report", config=ReportConfig, run=run)

if __name__ == "__main__":
    run_module("evaluation.suites.report", "main")
