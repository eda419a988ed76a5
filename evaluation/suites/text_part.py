"""One of the things that `alignkit evaluate text` measures at once: each has a protocol and so a result of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from evaluation.artefacts import write_result
from evaluation.resolution import resolution_notes
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject, write_samples
from launch.stage import Job

SAME = ("word_perplexity", "byte_perplexity", "mean_document_perplexity")
"""Perplexities that tell models apart as `bits_per_byte` and `perplexity` do."""


@dataclass(frozen=True)
class Part:
    """Documents, a task, completions: what they gave, and the folder below the stage's that the result is written into."""

    folder: str
    protocol: Protocol
    metrics: list[Metric]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_part(job: Job, subject: Subject, part: Part) -> dict[str, Any]:
    """Write results.json and, where there are rows, samples.jsonl of a part; returns its numbers for the stage's summary."""
    folder = job.output_dir / part.folder
    folder.mkdir(parents=True, exist_ok=True)
    result = EvaluationResult(
        suite="text",
        subject=subject,
        protocol=part.protocol,
        metrics=part.metrics,
        samples=write_samples(folder, part.rows) if part.rows and job.runtime.is_main else None,
        notes=part.notes,
        resolution=resolution_notes(part.metrics, _resolved(part.metrics)),
    )
    return write_result(job, result, folder)


def _resolved(metrics: list[Metric]) -> list[str]:
    """The metrics whose smallest resolvable difference is told: those of which one end is the better."""
    return [m.name for m in metrics if m.higher_is_better is not None and m.name not in SAME]
