"""`alignkit evaluate text`: perplexity of a language model on held-out text, and the quality of its completions."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data import load_documents
from data.completions import Completion, load_completions
from data.named_splits import hash_position
from data.records import Document
from data.sources import TextSplit
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
from evaluation.scoring import BATCH_TOKENS
from launch.config import artefact, operational
from launch.entry import run_module
from launch.provenance import fingerprint_input, hardware, package_versions
from launch.ranges import PositiveInt
from launch.stage import Job, Stage, StageConfig

CHUNK = 64  # documents between two advances of the progress display


@dataclass(kw_only=True)
class TextConfig(StageConfig):
    """Perplexity and bits per byte of a language model on held-out text; quality of its completions."""

    name: str = ""
    """Name of the model in reports; the folder's name unless given."""
    model: str = artefact("")
    """The language model: a folder, or hub:org/name."""
    documents: str = artefact("")
    """Held-out text: a file, a folder, embedded:python-prose or hub:...; `::eval` picks
    the split that `::train`, and every stage that holds something out, leaves alone."""
    text_field: str = "text"
    """The column of tables that holds the text."""
    split_text: TextSplit = "file"
    """What one document of a text file is: the file, a paragraph (blank-line), or the text between <|endoftext|> marks."""
    max_documents: PositiveInt | None = None
    """Use only so many documents, the first by content hash."""
    context: PositiveInt | None = None
    """Tokens that a window reads, at most; the model's longest context unless given."""
    stride: PositiveInt | None = None
    """New tokens of each further window; half the context unless given."""
    completions: str = artefact("")
    """Completions of the model (file or folder of `alignkit generate`), to measure length, diversity and repetition."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products: bf16 is faster on most machines, and moves the numbers in the third digit."""
    batch_tokens: PositiveInt = operational(BATCH_TOKENS)
    """Tokens in one batch, padding included; it changes results by rounding alone."""

    def check(self) -> None:
        """The model and at least one thing to measure it on."""
        if not self.model:
            raise ValueError("model is missing; add --model PATH")
        if not self.documents and not self.completions:
            raise ValueError("documents is missing; add --documents SOURCE for perplexity, or --completions FILE")


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


STAGE = Stage("evaluate text", TextConfig, run)

if __name__ == "__main__":
    run_module("evaluation.suites.text")
