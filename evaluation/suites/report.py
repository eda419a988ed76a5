"""`alignkit report DIR... --output_dir OUT`: results of evaluations as a page, a leaderboard, and tables.

Writes index.html (one self-contained file), leaderboard.json, .csv, .md, .tex and .txt, and exports/ in the formats of other
tools. `--against EARLIER` also compares with an earlier run and writes changes.json; with `--fail-if-worse` the exit code is 1
when a metric got significantly worse.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args

from launch.config import artefact, load_config, operational
from launch.entry import run_module, run_stage_command
from launch.errors import UserError, nearest
from launch.files import read_json
from launch.provenance import RUNS_WITHIN
from launch.ranges import Range
from launch.stage import LazyRun, Stage, StageConfig

CHANGES_FILE = "changes.json"
EXIT_WORSE = 1
Export = Literal["lm-eval", "every-eval-ever", "hub", "model-index"]
EXPORTS: tuple[Export, ...] = get_args(Export)


@dataclass(kw_only=True)
class ReportConfig(StageConfig):
    """The report of everything under some folders."""

    inputs: list[str] = artefact([], RUNS_WITHIN)
    """Folders with results.json, provenance.json and metrics.jsonl, at any depth. Parents of stages are found by
    themselves."""
    against: list[str] = artefact([], RUNS_WITHIN)
    """Folders of an earlier run to compare with, metric by metric, under equal protocols."""
    fail_if_worse: bool = operational(False)
    """Exit with code 1, and say which, when a metric is significantly worse than in `against`."""
    baseline: str = ""
    """Name of the entry that paired differences are shown from at first; the page lets its reader choose another."""
    exports: list[Export] = field(default_factory=lambda: list(EXPORTS))
    """Formats of other tools to write under exports/; an empty list writes none."""
    title: str = "Evaluation report"
    """Title of the page."""
    show: bool = operational(True)
    """Print the leaderboards on the terminal. In a lifecycle `alignkit run` shows them at its end instead."""
    width: Annotated[int, Range(20)] = 100
    """Columns of leaderboard.txt."""

    def check(self) -> None:
        if not self.inputs:
            raise ValueError("inputs: is empty; name folders, as in `alignkit report DIR... --output_dir OUT`")
        if self.fail_if_worse and not self.against:
            raise ValueError("fail_if_worse: nothing to compare with; name the earlier run with --against DIR")


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
    if not any(word in ("-h", "--help") for word in words):
        fail_if_worse(load_config(ReportConfig, words))


def fail_if_worse(config: ReportConfig) -> None:
    """Leave with exit code 1, naming them, when the report that was just written found worse metrics and the user asked."""
    if not config.fail_if_worse:
        return
    from evaluation.report.text import visible  # not above: `--help` needs no numpy

    worse = read_json(Path(config.output_dir) / CHANGES_FILE)["worse"]
    if worse:
        named = visible("; ".join(worse))
        print(f"alignkit: significantly worse than {', '.join(config.against)}: {named}", file=sys.stderr)
        raise SystemExit(EXIT_WORSE)


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


STAGE = Stage("report", ReportConfig, LazyRun("evaluation.suites.report_run"))

if __name__ == "__main__":
    run_module("evaluation.suites.report", "main")
