"""The same results in the formats of other tools. Each folder under exports/ is what that tool reads as its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from evaluation.report.collect import Collection
from evaluation.report.formats.every_eval_ever import write_every_eval_ever
from evaluation.report.formats.hub import write_eval_results, write_model_index
from evaluation.report.formats.lm_eval import write_lm_eval
from evaluation.report.items import SampleReader
from evaluation.report.leaderboard import distinct_names

Writer = Callable[[Path, Collection, SampleReader], None]
WRITERS: dict[str, Writer] = {
    "lm-eval": write_lm_eval,
    "every-eval-ever": write_every_eval_ever,
    "hub": write_eval_results,
    "model-index": write_model_index,
}


def write_exports(folder: Path, found: Collection, formats: Sequence[str], rows_of: SampleReader) -> None:
    """Write each format into its folder below `folder`. Models of one name and different contents stay apart."""
    named = distinct_names([entry.result for entry in found.results])
    apart = [replace(entry, result=result) for entry, result in zip(found.results, named, strict=True)]
    for name in formats:
        WRITERS[name](folder / name.replace("-", "_"), replace(found, results=apart), rows_of)


__all__ = ["write_exports"]
