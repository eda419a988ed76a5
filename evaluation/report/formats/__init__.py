"""The same results in the formats of other tools. Each folder under exports/ is what that tool reads as its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.report.collect import Collection
from evaluation.report.formats.every_eval_ever import write_every_eval_ever
from evaluation.report.formats.hub import write_eval_results, write_model_index
from evaluation.report.formats.lm_eval import write_lm_eval
from evaluation.report.items import SampleReader

Writer = Callable[[Path, Collection, SampleReader], None]
WRITERS: dict[str, Writer] = {
    "lm-eval": write_lm_eval,
    "every-eval-ever": write_every_eval_ever,
    "hub": write_eval_results,
    "model-index": write_model_index,
}


def write_exports(folder: Path, found: Collection, formats: Sequence[str], rows_of: SampleReader) -> None:
    """Write each format into its folder below `folder`."""
    for name in formats:
        WRITERS[name](folder / name.replace("-", "_"), found, rows_of)


__all__ = ["write_exports"]
