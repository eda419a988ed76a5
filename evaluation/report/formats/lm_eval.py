"""lm-evaluation-harness: results_<date>.json and samples_<task>_<date>.jsonl for each model, as its `--output_path` has them.

A task is a suite on one data set under one protocol. Keys are `metric,filter` with the filter `none`; a metric without a
standard error has "N/A", as there. Field names after lm_eval/result_schema.py of version 0.4.13.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.report.collect import Collection, FoundResult
from evaluation.report.formats.naming import encodable, epoch, model_identifier, split_of, task_name
from evaluation.report.items import Items, Row, SampleReader, item_keys, item_scores
from evaluation.report.viewer import PROMPT_FIELDS, REFERENCE_FIELDS, TEXT_FIELDS, first_text
from evaluation.schema import EvaluationResult, Metric
from launch.files import canonical_json, sha256_text, write_atomic, write_json

FILTER = "none"


def write_lm_eval(folder: Path, found: Collection, rows_of: SampleReader) -> None:
    """A folder for each model with its results and, where there are some, its samples."""
    models: dict[str, list[FoundResult]] = {}
    for entry in found.results:
        models.setdefault(model_identifier(entry.result), []).append(entry)
    for model, entries in models.items():
        newest = {task_name(e.result): e for e in entries}  # results come in the order of their dates
        date = max(e.result.created for e in entries).replace(":", "-")
        place = folder / model.replace("/", "__")
        write_json(place / f"results_{date}.json", results_record(model, newest))
        for task, entry in newest.items():
            if rows := rows_of(entry):
                lines = sample_records(entry.result, rows)
                write_atomic(place / f"samples_{task}_{date}.jsonl", "".join(f"{line}\n" for line in lines))


def results_record(model: str, tasks: dict[str, FoundResult]) -> dict[str, Any]:
    """The results file of one model."""
    results = {task: entry.result for task, entry in tasks.items()}
    first = next(iter(results.values()))
    return {
        "results": {task: _task(task, r) for task, r in results.items()},
        "group_subtasks": {task: [] for task in results},
        "configs": {task: _config(task, r) for task, r in results.items()},
        "versions": {task: float(r.schema_version) for task, r in results.items()},
        "n-shot": {task: int(r.protocol.settings.get("num_fewshot", 0)) for task, r in results.items()},
        "higher_is_better": {
            task: {key(m): m.higher_is_better for m in r.metrics if m.value is not None} for task, r in results.items()
        },
        "n-samples": {
            task: {"original": r.protocol.n_items, "effective": r.protocol.n_items} for task, r in results.items()
        },
        "config": {
            "model": "alignkit",
            "model_args": f"pretrained={encodable(first.subject.path or first.subject.name)}",
            "model_sha": first.subject.sha256,
        },
        "date": max(map(epoch, results.values())),
        "transformers_version": first.versions.get("transformers", ""),
        "lm_eval_version": f"alignkit {first.versions.get('alignkit', '')}".strip(),
        "model_source": "alignkit",
        "model_name": model,
        "model_name_sanitized": model.replace("/", "__"),
        "task_hashes": {task: r.protocol.dataset_sha256 for task, r in results.items()},
        "total_evaluation_time_seconds": str(sum(r.seconds for r in results.values())),
    }


def key(entry: Metric) -> str:
    """A metric's name before the comma that parts it from the filter."""
    return encodable(entry.name).replace(",", ";")


def _task(task: str, result: EvaluationResult) -> dict[str, Any]:
    values: dict[str, Any] = {"name": task, "alias": task, "sample_len": result.protocol.n_items}
    for entry in result.metrics:
        if entry.value is not None:
            values[f"{key(entry)},{FILTER}"] = entry.value
            values[f"{key(entry)}_stderr,{FILTER}"] = "N/A" if entry.stderr is None else entry.stderr
    return values


def _config(task: str, result: EvaluationResult) -> dict[str, Any]:
    protocol = result.protocol
    return {
        "task": task,
        "dataset_path": encodable(protocol.dataset),
        "test_split": encodable(split_of(result)),
        "num_fewshot": int(protocol.settings.get("num_fewshot", 0)),
        "generation_kwargs": json.loads(encodable(json.dumps(protocol.decoding))),
        "metric_list": [{"metric": key(m), "higher_is_better": m.higher_is_better} for m in result.metrics],
        "metadata": {"version": float(result.schema_version)},
    }


# ---------------------------------------------------------------------------------------------- samples


def sample_records(result: EvaluationResult, rows: Sequence[Row]) -> Iterator[str]:
    """One JSON line for each row, with the scores of those metrics that the rows explain."""
    known: dict[str, Items] = {
        key(m): found for m in result.metrics if m.value is not None and (found := item_scores(m, rows))
    }
    for number, (item, row) in enumerate(zip(item_keys(rows), rows, strict=True)):
        scores = {name: items.scores[item] for name, items in known.items() if item in items.scores}
        yield encodable(json.dumps(sample_record(number, row, scores), ensure_ascii=False))


def sample_record(number: int, row: Row, scores: dict[str, float]) -> dict[str, Any]:
    """One row as the harness logs it: a single request, its response and its metrics."""
    prompt, text, target = (first_text(row, names) for names in (PROMPT_FIELDS, TEXT_FIELDS, REFERENCE_FIELDS))
    return {
        "doc_id": number,
        "doc": row,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {}}},
        "resps": [[text]],
        "filtered_resps": [text],
        "filter": FILTER,
        "metrics": list(scores),
        "doc_hash": sha256_text(encodable(canonical_json(row))),
        "prompt_hash": sha256_text(encodable(prompt)),
        "target_hash": sha256_text(encodable(target)),
        **scores,
    }
