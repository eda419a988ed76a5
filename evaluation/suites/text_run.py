"""The work of `alignkit evaluate text`: score documents and tasks, measure completions, write a result for each."""

from __future__ import annotations

from typing import Any

from evaluation.artefacts import describe_subject, load_language_model
from evaluation.sample_log import clear_samples
from evaluation.schema import Subject
from evaluation.suites.text import TextConfig
from evaluation.suites.text_completions import completion_parts
from evaluation.suites.text_documents import choose_documents, documents_part
from evaluation.suites.text_part import Part, write_part
from evaluation.suites.text_tasks import task_parts
from launch.stage import Job


def run(config: TextConfig, job: Job) -> dict[str, Any]:
    """Write results.json and samples.jsonl of each part into a folder of its own.

    So every number stands under the data that it was measured on, and meets those of the same data whatever was measured
    beside it.
    """
    subject = describe_subject("model", config.model, "language model", config.name)
    answered = completion_parts(config, job)  # first, since a mistake in their file should not come after hours
    parts = [*_model_parts(config, job, subject), *answered]
    summary: dict[str, Any] = {}
    for part in parts:
        summary |= write_part(job, subject, part)
    clear_samples(job)
    return summary


def _model_parts(config: TextConfig, job: Job, subject: Subject) -> list[Part]:
    """What needs the model: documents and tasks."""
    if not config.documents and not config.tasks:
        return []
    documents = choose_documents(config) if config.documents else []
    model, tokenizer = load_language_model("model", config.model, job.runtime.device)
    identity = {"model": subject.sha256, "precision": job.runtime.precision}
    parts = [documents_part(config, job, documents, model, tokenizer, identity)] if documents else []
    return parts + (task_parts(config, job, model, tokenizer, identity) if config.tasks else [])
