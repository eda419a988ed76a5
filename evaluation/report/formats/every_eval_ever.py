"""Every Eval Ever 0.3.0: one record for each result, with its uncertainty, and its samples line by line.

Files lie where the data store of that project wants them: data/<benchmark>/<developer>/<model>/<uuid>.json, the samples beside
it. Names and enumerations after its eval.schema.json and instance_level_eval.schema.json. A metric without a direction has to
have one there: it is written as higher-is-better, and `direction: none` among its details says that it is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.report.collect import Collection
from evaluation.report.commands import origin_of
from evaluation.report.formats.naming import (
    encodable,
    epoch,
    hub_dataset,
    model_identifier,
    split_of,
    stable_uuid,
    task_name,
)
from evaluation.report.items import Row, SampleReader, item_keys
from evaluation.report.viewer import PROMPT_FIELDS, REFERENCE_FIELDS, TEXT_FIELDS, first_text, is_wrong
from evaluation.schema import EvaluationResult, Metric
from launch.files import canonical_json, sha256_file, sha256_text, write_atomic, write_json

SCHEMA_VERSION = "0.3.0"
GENERATION_FIELDS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_new_tokens": "max_tokens"}


def write_every_eval_ever(folder: Path, found: Collection, rows_of: SampleReader) -> None:
    """A record for each result that has a number, and its samples where they have an answer to read."""
    for entry in found.results:
        if all(m.value is None for m in entry.result.metrics):
            continue
        name, place = stable_uuid(identifier(entry.result)), _place(entry.result)
        origin = origin_of(entry, found.stages)
        content = record(entry.result, origin.command if origin else "")
        lines = list(instances(entry.result, rows_of(entry)))
        if lines:
            samples = folder / place / f"{name}_samples.jsonl"
            write_atomic(samples, "".join(f"{line}\n" for line in lines))
            content["detailed_evaluation_results"] = {
                "format": "jsonl",
                "file_path": str(place / samples.name),
                "hash_algorithm": "sha256",
                "checksum": sha256_file(samples),
                "total_rows": len(lines),
            }
        write_json(folder / place / f"{name}.json", content)


def _place(result: EvaluationResult) -> Path:
    return Path("data", task_name(result), *model_identifier(result).split("/"))


def identifier(result: EvaluationResult) -> str:
    """The identifier of a result: benchmark, model and time, with the content hash of what was measured."""
    return f"{task_name(result)}/{model_identifier(result)}/{result.subject.sha256[:12]}/{epoch(result):.0f}"


def record(result: EvaluationResult, command: str = "") -> dict[str, Any]:
    """The aggregate record of one result."""
    time = f"{epoch(result):.0f}"
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": identifier(result),
        "evaluation_timestamp": time,
        "retrieved_timestamp": time,
        "source_metadata": {
            "source_name": "alignkit",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "alignkit",
            "version": result.versions.get("alignkit", "unknown"),
            "additional_details": {k: str(v) for k, v in result.versions.items()},
        },
        "model_info": _model(result),
        "evaluation_results": [_result(result, m, command) for m in result.metrics if m.value is not None],
    }


def _model(result: EvaluationResult) -> dict[str, Any]:
    subject, name = result.subject, model_identifier(result)
    return {
        "name": encodable(subject.name),
        "id": name,
        "developer": name.split("/")[0],
        "additional_details": {
            "deployment_type": "self_deployed",
            "model_availability": "open_weights" if subject.path.startswith("hub:") else "unknown",
            "sha256": subject.sha256,
            "kind": subject.kind,
        },
    }


def _result(result: EvaluationResult, entry: Metric, command: str) -> dict[str, Any]:
    return {
        "evaluation_result_id": f"{task_name(result)}.{encodable(entry.name)}",
        "evaluation_name": task_name(result),
        "source_data": _source(result),
        "metric_config": _metric(result, entry),
        "score_details": {"score": entry.value, "uncertainty": _uncertainty(entry)},
        "generation_config": _generation(result, command),
    }


def _source(result: EvaluationResult) -> dict[str, Any]:
    protocol = result.protocol
    details = {"sha256": protocol.dataset_sha256, "split": encodable(split_of(result))}
    name = encodable(protocol.dataset)
    hub = hub_dataset(protocol.dataset)
    if hub is None:
        return {"dataset_name": name, "source_type": "other", "additional_details": details}
    return {
        "dataset_name": name,
        "source_type": "hf_dataset",
        "hf_repo": hub.path,
        "samples_number": protocol.n_items,
        "additional_details": details,
    }


def _metric(result: EvaluationResult, entry: Metric) -> dict[str, Any]:
    details = {"direction": {True: "higher", False: "lower", None: "none"}[entry.higher_is_better]}
    low, high = entry.bounds
    config: dict[str, Any] = {
        "evaluation_description": encodable(entry.description),
        "metric_id": f"alignkit.{encodable(entry.name)}",
        "metric_name": encodable(entry.name),
        "metric_unit": "proportion" if entry.unit == "share" else encodable(entry.unit) or "none",
        "lower_is_better": entry.higher_is_better is False,
        "score_type": "continuous",
        "min_score": low,
        "max_score": high,
        "additional_details": details,
    }
    if result.protocol.judge and result.suite == "win-rate":
        config["llm_scoring"] = _judging(result)
    return config


def _judging(result: EvaluationResult) -> dict[str, Any]:
    judge = result.protocol.judge
    assert judge is not None
    details = {"deployment_type": "self_deployed", "model_availability": "unknown", "sha256": judge.sha256}
    info = {"name": encodable(judge.path), "id": encodable(judge.path), "additional_details": details}
    return {"judges": [{"model_info": info}], "input_prompt": encodable(result.protocol.template) or "none"}


def _uncertainty(entry: Metric) -> dict[str, Any]:
    found: dict[str, Any] = {"num_samples": entry.n}
    if entry.stderr is not None:
        found["standard_error"] = {"value": entry.stderr, "method": entry.ci_method or "analytic"}
    if entry.ci_low is not None and entry.ci_high is not None:
        found["confidence_interval"] = {
            "lower": entry.ci_low,
            "upper": entry.ci_high,
            "confidence_level": entry.ci_level,
            "method": entry.ci_method,
        }
    return found


def _generation(result: EvaluationResult, command: str) -> dict[str, Any]:
    made = result.protocol.decoding
    arguments = {theirs: made[ours] for ours, theirs in GENERATION_FIELDS.items() if made.get(ours) is not None}
    if command:
        arguments["execution_command"] = encodable(command)
    settings = {k: encodable(str(v)) for k, v in result.protocol.settings.items()}
    return {"generation_args": arguments, "additional_details": settings}


# ---------------------------------------------------------------------------------------------- samples


def instances(result: EvaluationResult, rows: Sequence[Row]) -> Iterator[str]:
    """A line for each row with an answer whose rightness is known, as that schema asks; others are left out."""
    names = item_keys(rows)
    for (item, turn), row in zip(names, rows, strict=True):
        wrong, text = is_wrong(result.suite, row), first_text(row, TEXT_FIELDS)
        if wrong is None or not text:
            continue
        digest = sha256_text(encodable(canonical_json(row)))
        yield encodable(json.dumps(_instance(result, f"{item}#{turn}", digest, row, text, wrong), ensure_ascii=False))


def _instance(result: EvaluationResult, name: str, digest: str, row: Row, text: str, wrong: bool) -> dict[str, Any]:
    reference = first_text(row, REFERENCE_FIELDS)
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": identifier(result),
        "model_id": model_identifier(result),
        "evaluation_name": task_name(result),
        "sample_id": stable_uuid(name),
        "sample_hash": digest,
        "interaction_type": "single_turn",
        "input": {"raw": first_text(row, PROMPT_FIELDS), "reference": [reference] if reference else []},
        "output": {"raw": [text]},
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": text,
                "extraction_method": "none",
                "is_terminal": True,
            }
        ],
        "evaluation": {"score": float(row.get("outcome", not wrong)), "is_correct": not wrong},
    }
