"""What a reader has to know before the numbers: entries made in different precision, generators below the yardstick. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.report.collect import Collection, FoundStage
from evaluation.report.leaderboard import FAMILIES, Cell, Column, Leaderboard, Row
from evaluation.report.text import format_interval, format_number
from evaluation.schema import EvaluationResult

DISTANCE = re.compile(r"(fid|fd_\w+)@\d+")
COPIES = re.compile(r"training_copies_\w+@\d+")
SAMPLERS = ("generate", "sample")
"""Commands whose artefacts are what a model made."""


def precision_notes(found: Collection) -> list[str]:
    """One sentence for each leaderboard and step of the work where its entries had different precision."""
    notes = []
    for title, kinds in FAMILIES.items():
        results = [entry.result for entry in found.results if entry.result.subject.kind in kinds]
        made: dict[str, dict[str, dict[str, None]]] = {}
        for result in results:
            for step, precision in _precisions(result, found.stages):
                made.setdefault(step, {}).setdefault(precision, {})[result.subject.name] = None
        for step, groups in made.items():
            if len(groups) > 1:
                named = "; ".join(f"{precision}: {', '.join(names)}" for precision, names in sorted(groups.items()))
                notes.append(
                    f"{title}: not all were {step} in the same precision ({named}), so small differences may come from "
                    "rounding; set `precision` to one value to rule that out."
                )
    return notes


def _precisions(result: EvaluationResult, stages: Sequence[FoundStage]) -> Iterator[tuple[str, str]]:
    """(step of the work, precision) of a result, as far as it is recorded."""
    if measured := result.protocol.settings.get("precision"):
        yield f"measured by `evaluate {result.suite}`", str(measured)
    subject = result.subject
    hashes = {subject.sha256, subject.parents.get("completions", "")} - {""}
    folder = Path(subject.path).resolve() if subject.path else None
    for stage in stages:
        if stage.provenance["content_sha256"] not in hashes and stage.folder != folder:
            continue
        sampled = stage.provenance["stage"] in SAMPLERS
        made = _model_of(stage, stages) if stage.provenance["stage"] == "sample" else None  # images: their generator
        for step, maker in (("sampled" if sampled else "trained", stage), ("trained", made)):
            if maker and (precision := maker.provenance.get("precision")):
                yield step, str(precision)


def _model_of(stage: FoundStage, stages: Sequence[FoundStage]) -> FoundStage | None:
    """The stage that made the model which a stage sampled from."""
    sha = stage.provenance["inputs"].get("model", {}).get("sha256")
    return next((s for s in stages if s.provenance["content_sha256"] == sha), None)


def yardstick_notes(boards: Sequence[Leaderboard]) -> list[str]:
    """A sentence for each generator whose Fréchet distance lies below that of the best yardstick, real images held out."""
    notes = []
    for board in boards:
        for column in (c for c in board.columns if DISTANCE.fullmatch(c.name)):
            known = [(row, row.cells[column.key]) for row in board.rows if column.key in row.cells]
            floors = [(row, cell) for row, cell in known if row.reference and cell.metric.value is not None]
            if not floors:
                continue
            floor, floor_cell = min(floors, key=lambda pair: pair[1].metric.value or 0.0)
            notes += [
                _below_the_floor(board, column, row, cell, floor, floor_cell)
                for row, cell in known
                if not row.reference and (cell.metric.value or 0.0) < (floor_cell.metric.value or 0.0)
            ]
    return notes


def _below_the_floor(board: Leaderboard, column: Column, row: Row, cell: Cell, floor: Row, floor_cell: Cell) -> str:
    high, low = cell.metric.ci_high, floor_cell.metric.ci_low
    overlap = high is None or low is None or high >= low
    value, least = (format_number(c.metric.value, column.decimals) for c in (cell, floor_cell))
    meaning = (
        f"their intervals overlap, so {cell.metric.n} images are too few to tell them apart, and it is not better than real"
        if overlap
        else "no generator does that by learning the distribution, so it has probably memorised images near the reference"
    )
    return (
        f"{row.name}: its {column.title} of {value} is below the {least} of {floor.name}, the floor: {meaning}; look at "
        f"{_precision_beside(board, row, floor)}its copies of training images."
    )


def copy_notes(results: Sequence[EvaluationResult]) -> list[str]:
    """A sentence for each generator that surely makes more near copies of its training images than real images are."""
    notes = []
    for result in (r for r in results if r.subject.kind == "image generator"):
        for entry in (m for m in result.metrics if COPIES.fullmatch(m.name)):
            within = entry.extra.get("real_images_within")
            if within is None or entry.value is None or entry.ci_low is None or entry.ci_low <= within:
                continue
            interval = format_interval(100 * entry.ci_low, None if entry.ci_high is None else 100 * entry.ci_high, 1)
            notes.append(
                f"{result.subject.name}: it copies what it was trained on: {100 * entry.value:.1f} % {interval} of its images "
                f"are as near to one of {entry.extra['training']} as {100 * within:.1f} % of real images are, and its other "
                "scores are flattered by that."
            )
    return notes


def _precision_beside(board: Leaderboard, row: Row, floor: Row) -> str:
    """`its precision (64 % against 90 %) and `, where both have one."""
    for column in (c for c in board.columns if c.name.startswith("precision_")):
        values = [r.cells[column.key].metric.value for r in (row, floor) if column.key in r.cells]
        if len(values) == 2 and None not in values:
            ours, theirs = (f"{100 * (value or 0.0):.0f} %" for value in values)
            return f"its precision ({ours} against {theirs}) and "
    return ""
