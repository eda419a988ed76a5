"""The work of `alignkit evaluate text`: score documents, measure completions, write the result."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data import load_documents
from data.completions import Completion, load_completions
from data.named_splits import hash_position
from data.records import Document
from evaluation.artefacts import (
    beating,
    describe_subject,
    load_language_model,
    over_ranks,
    provenance_of,
    write_result,
)
from evaluation.language.perplexity import DocumentScore, Perplexity, conditioning, perplexity, window_sizes
from evaluation.language.quality import is_degenerate, quality_metrics, repetition
from evaluation.schema import EvaluationResult, Metric, Protocol, write_samples
from evaluation.suites.text import TextConfig
from launch.provenance import fingerprint_input, hardware, package_versions
from launch.stage import Job

CHUNK = 64  # documents between two advances of the progress display


def run(config: TextConfig, job: Job) -> dict[str, Any]:
    """Write results.json and samples.jsonl."""
    start = time.monotonic()
    metrics: list[Metric] = []
    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    if config.documents:
        documents = choose_documents(config)
        scores, settings = _score(config, job, documents)
        metrics += scores.metrics()
        rows += [_document_row(d, s) for d, s in zip(documents, scores.documents, strict=True)]
    if config.completions:
        completions = load_completions(config.completions)
        extra = {"dataset": prompts_of(config.completions)[0]}
        metrics += [replace(m, extra=m.extra | extra) for m in quality_metrics(completions)]
        rows += [_completion_row(c) for c in completions]
    source, fingerprint = (
        (config.documents, fingerprint_input("documents", config.documents)["sha256"])
        if config.documents
        else prompts_of(config.completions)
    )
    result = EvaluationResult(
        suite="text",
        subject=describe_subject("model", config.model, "language model", config.name),
        protocol=Protocol(
            dataset=source,
            dataset_sha256=fingerprint,
            n_items=len(rows),
            split=source.partition("::")[2],
            settings=settings | {"precision": job.runtime.precision},
        ),
        metrics=metrics,
        samples=write_samples(job.output_dir, rows) if job.runtime.is_main else None,
        versions=package_versions(),
        hardware=hardware(),
        seconds=time.monotonic() - start,
    )
    return write_result(job, result)


def prompts_of(completions: str) -> tuple[str, str]:
    """The source of the prompts that completions answer, and its fingerprint; without provenance the file itself."""
    made = provenance_of(completions)
    fallback = completions, fingerprint_input("completions", completions)["sha256"]
    prompts = made.get("inputs", {}).get("prompts")
    return (made["config"]["prompts"], prompts["sha256"]) if prompts else fallback


def choose_documents(config: TextConfig) -> list[Document]:
    """The documents of the source; with `max_documents` those with the lowest content hash, in their order."""
    documents = load_documents(config.documents, config.text_field, config.split_text)
    if config.max_documents is None or len(documents) <= config.max_documents:
        return documents
    ranked = sorted(range(len(documents)), key=lambda i: (hash_position(documents[i].text, "evaluate text"), i))
    return [documents[i] for i in sorted(ranked[: config.max_documents])]


def _score(config: TextConfig, job: Job, documents: Sequence[Document]) -> tuple[Perplexity, dict[str, Any]]:
    """The scores of the documents, and the settings that they were made with."""
    model, tokenizer = load_language_model("model", config.model, job.runtime.device)
    context, stride = window_sizes(model, config.context, config.stride)
    with beating(job, -(-len(documents) // job.runtime.world), "score documents") as beat, job.runtime.autocast():

        def compute(part: list[Document]) -> list[DocumentScore]:
            scores: list[DocumentScore] = []
            for start in range(0, len(part), CHUNK):
                chunk = part[start : start + CHUNK]
                found = perplexity(model, tokenizer, chunk, context, stride, config.batch_tokens, lambda n: beat(0))
                scores += found.documents
                beat(len(chunk))
            return scores

        scores = over_ranks(job, documents, compute)
    return Perplexity(scores), {"context": context, "stride": stride, "documents": conditioning(tokenizer)}


def _document_row(document: Document, score: DocumentScore) -> dict[str, Any]:
    return {
        "kind": "document",
        "origin": document.origin,
        "nats": score.nats,
        "tokens": score.tokens,
        "words": score.words,
        "bytes": score.bytes,
        "bits_per_byte": score.nats / math.log(2) / score.bytes if score.bytes else None,
    }


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
