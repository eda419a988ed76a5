"""The work of `alignkit evaluate text`: score documents and tasks, measure completions, write the result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data.completions import Completion, load_completions
from evaluation.artefacts import describe_subject, load_language_model, provenance_of, write_result
from evaluation.language.quality import is_degenerate, quality_metrics, repetition
from evaluation.resolution import resolution_notes
from evaluation.sample_log import clear_samples
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject, write_samples
from evaluation.suites.text import TextConfig
from evaluation.suites.text_completions import mauve_metrics
from evaluation.suites.text_documents import check_batching, choose_documents, document_row, score_documents
from evaluation.suites.text_tasks import TaskScores, score_tasks
from launch.files import canonical_json, sha256_text
from launch.provenance import fingerprint_input
from launch.stage import Job

SAME = ("word_perplexity", "byte_perplexity", "mean_document_perplexity")
"""Perplexities that tell models apart as `bits_per_byte` and `perplexity` do."""


def run(config: TextConfig, job: Job) -> dict[str, Any]:
    """Write results.json and samples.jsonl."""
    subject = describe_subject("model", config.model, "language model", config.name)
    metrics, rows, settings, notes, tasks = _score_model(config, job, subject)
    if config.completions:
        completions = load_completions(config.completions)
        extra = {"dataset": prompts_of(config.completions)[0]}
        found = quality_metrics(completions) + mauve_metrics(config, job, completions)
        metrics += [replace(m, extra=m.extra | extra) for m in found]
        rows += [_completion_row(c) for c in completions]
    source, fingerprint = _dataset(config, tasks)
    result = EvaluationResult(
        suite="text",
        subject=subject,
        protocol=Protocol(
            dataset=source,
            dataset_sha256=fingerprint,
            n_items=len(rows),
            split=source.partition("::")[2],
            settings=settings | {"precision": job.runtime.precision},
        ),
        metrics=metrics,
        samples=write_samples(job.output_dir, rows) if job.runtime.is_main else None,
        notes=notes,
        resolution=resolution_notes(metrics, _resolved(metrics)),
    )
    summary = write_result(job, result)
    clear_samples(job)
    return summary


def _score_model(
    config: TextConfig, job: Job, subject: Subject
) -> tuple[list[Metric], list[dict[str, Any]], dict[str, Any], list[str], TaskScores]:
    """Metrics, rows, settings and notes of what needs the model: documents and tasks."""
    metrics: list[Metric] = []
    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    notes: list[str] = []
    tasks = TaskScores()
    documents = choose_documents(config) if config.documents else []
    if not config.documents and not config.tasks:
        return metrics, rows, settings, notes, tasks
    model, tokenizer = load_language_model("model", config.model, job.runtime.device)
    identity = {"model": subject.sha256, "precision": job.runtime.precision}
    if documents:
        scores, settings = score_documents(config, job, documents, model, tokenizer, identity)
        deviation, notes = check_batching(config, job, documents, model, tokenizer)
        metrics += [*scores.metrics(), deviation]
        rows += [document_row(d, s) for d, s in zip(documents, scores.documents, strict=True)]
    if config.tasks:
        tasks = score_tasks(config, job, model, tokenizer, identity)
        metrics += tasks.metrics
        rows += tasks.rows
        settings |= {"tasks": tasks.settings}
        notes += tasks.notes
    return metrics, rows, settings, notes, tasks


def _resolved(metrics: list[Metric]) -> list[str]:
    """The metrics whose smallest resolvable difference is told: those of which one end is the better."""
    return [m.name for m in metrics if m.higher_is_better is not None and m.name not in SAME]


def _dataset(config: TextConfig, tasks: TaskScores) -> tuple[str, str]:
    """The source that the result stands under, and its fingerprint: documents, else tasks, else the completions' prompts."""
    if config.documents:
        return config.documents, fingerprint_input("documents", config.documents)["sha256"]
    if config.tasks:
        hashes = {task: entry["hash"] for task, entry in tasks.settings.items()}
        return f"lm-eval:{','.join(config.tasks)}", sha256_text(canonical_json(hashes))
    return prompts_of(config.completions)


def prompts_of(completions: str) -> tuple[str, str]:
    """The source of the prompts that completions answer, and its fingerprint; without provenance the file itself."""
    made = provenance_of(completions)
    fallback = completions, fingerprint_input("completions", completions)["sha256"]
    prompts = made.get("inputs", {}).get("prompts")
    return (made["config"]["prompts"], prompts["sha256"]) if prompts else fallback


def _completion_row(row: Completion) -> dict[str, Any]:
    return {
        "kind": "completion",
        "id": row.id,
        "prompt": row.prompt_text,
        "completion": row.text,
        "tokens": len(row.completion_ids),
        "finished": row.finished,
        "repetition_4": repetition(row.text.split()),
        "degenerate": is_degenerate(row.text),
    }
