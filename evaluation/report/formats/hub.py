"""The Hugging Face hub: `.eval_results/*.yaml` and a model card's `model-index`, both through huggingface_hub's own types.

Nothing is uploaded: the files are for the user to put into the model's repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from evaluation.report.collect import Collection
from evaluation.report.formats.naming import encodable, hub_dataset, model_identifier, slug, split_of, task_name
from evaluation.report.items import SampleReader
from evaluation.report.names import primary_rank, short_source
from evaluation.report.text import format_interval, visible
from evaluation.schema import EvaluationResult, Metric, SubjectKind
from launch.files import write_atomic

TASK_TYPES: dict[SubjectKind, str] = {
    "language model": "text-generation",
    "completions": "text-generation",
    "reward model": "text-classification",
    "image generator": "unconditional-image-generation",
    "images": "unconditional-image-generation",
    "detector": "image-classification",
    "judge": "text-classification",
}


def write_eval_results(folder: Path, found: Collection, rows_of: SampleReader) -> None:
    """<model>/.eval_results/<task>.yaml for each result on a data set of the hub; the format has no other kind of data set."""
    for entry in found.results:
        written = eval_result_entry(entry.result)
        if written is not None:
            place = folder / model_identifier(entry.result).replace("/", "__") / ".eval_results"
            text = yaml.safe_dump(eval_result_entries_to_yaml([written]), sort_keys=False, allow_unicode=True)
            write_atomic(place / f"{task_name(entry.result)}.yaml", text)


def eval_result_entry(result: EvaluationResult) -> EvalResultEntry | None:
    """The number that decides, with its interval in the notes; None for data that is not on the hub."""
    place, entry = hub_dataset(result.protocol.dataset), deciding(result)
    if place is None or entry is None:
        return None
    commit = place.revision if re.fullmatch(r"[0-9a-f]{40}", place.revision or "") else None
    return EvalResultEntry(
        place.path, place.config or "default", entry.value, commit, date=result.created, notes=notes(entry)
    )


def deciding(result: EvaluationResult) -> Metric | None:
    """The metric that a leaderboard would sort by."""
    known = [m for m in result.metrics if m.value is not None and m.higher_is_better is not None]
    return min(known, key=lambda m: primary_rank(m.name), default=None)


def notes(entry: Metric) -> str:
    """What the number is: metric, interval, n."""
    interval = format_interval(entry.ci_low, entry.ci_high, 4)
    unit = f" ({entry.unit})" if entry.unit else ""
    level = f"{entry.ci_level:.0%} interval {interval}, {entry.ci_method}, " if interval else ""
    return visible(f"{entry.name}{unit}: {level}n = {entry.n}; alignkit")


# ---------------------------------------------------------------------------------------------- model-index


def write_model_index(folder: Path, found: Collection, rows_of: SampleReader) -> None:
    """<model>.md for each model: the front matter of a model card with all of its results."""
    models: dict[str, list[EvaluationResult]] = {}
    for entry in found.results:
        models.setdefault(model_identifier(entry.result), []).append(entry.result)
    for model, results in models.items():
        entries = [made for result in results for made in model_index_entries(result)]
        if entries:
            index = eval_results_to_model_index(model.split("/")[-1], entries)
            text = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True)
            write_atomic(folder / f"{slug(model.replace('/', '__'))}.md", f"---\n{text}---\n")


def model_index_entries(result: EvaluationResult) -> list[EvalResult]:
    """Every number of a result, its interval and n among its arguments; never two protocols under one data set's name."""
    place = hub_dataset(result.protocol.dataset)
    name = f"{short_source(result.protocol.dataset)} ({result.suite}, {task_name(result).rsplit('_', 1)[1]})"
    return [
        EvalResult(
            task_type=TASK_TYPES[result.subject.kind],
            dataset_type=place.path if place else task_name(result),
            dataset_name=visible(encodable(name)),
            metric_type=visible(encodable(entry.name)),
            metric_value=entry.value,
            dataset_split=visible(split_of(result)) or None,
            metric_name=visible(encodable(entry.name)),
            metric_args=_arguments(entry),
        )
        for entry in result.metrics
        if entry.value is not None
    ]


def _arguments(entry: Metric) -> dict[str, Any]:
    values: dict[str, Any] = {"n": entry.n}
    if entry.ci_low is not None:
        values |= {
            "ci_low": entry.ci_low,
            "ci_high": entry.ci_high,
            "ci_level": entry.ci_level,
            "ci_method": entry.ci_method,
        }
    return values
