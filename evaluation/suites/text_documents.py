"""Documents of `alignkit evaluate text`: chosen, scored as they come, and scored again alone to see what batching moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data import load_documents
from data.named_splits import lowest_hashes
from data.records import Document
from evaluation.artefacts import content_hash
from evaluation.language.perplexity import (
    DocumentScore,
    Perplexity,
    batch_deviation,
    conditioning,
    perplexity,
    window_sizes,
)
from evaluation.sample_log import score_samples
from evaluation.schema import Metric, Protocol
from evaluation.suites.text import TextConfig
from evaluation.suites.text_part import Part
from launch.stage import Job

UNIT_BATCHES = 16
"""Batches between two writes of the samples: enough that documents of like length meet."""
BYTES_PER_TOKEN = 4
CHECKED_DOCUMENTS = 16
LARGEST_DEVIATION = 1e-4
"""Nats by which a token's log-probability may depend on its batch in fp32."""


def choose_documents(config: TextConfig) -> list[Document]:
    """The documents of the source; with `max_documents` those with the lowest content hash, in their order."""
    documents = load_documents(config.documents, config.text_field, config.split_text)
    return _chosen(documents, config.max_documents)


def _chosen(documents: Sequence[Document], n: int | None) -> list[Document]:
    return lowest_hashes(documents, lambda document: document.text, n, "evaluate text")


def documents_part(
    config: TextConfig,
    job: Job,
    documents: Sequence[Document],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    identity: dict[str, Any],
) -> Part:
    """What the documents gave, under their texts' own hash. `identity` is the model's."""
    scores, settings = score_documents(config, job, documents, model, tokenizer, identity)
    deviation, notes = check_batching(config, job, documents, model, tokenizer)
    protocol = Protocol(
        dataset=config.documents,
        dataset_sha256=content_hash(document.text for document in documents),
        n_items=len(documents),
        split=config.documents.partition("::")[2],
        settings=settings | {"precision": job.runtime.precision},
    )
    rows = [document_row(d, s) for d, s in zip(documents, scores.documents, strict=True)]
    return Part("documents", protocol, [*scores.metrics(), deviation], rows, notes)


def score_documents(
    config: TextConfig,
    job: Job,
    documents: Sequence[Document],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    identity: dict[str, Any],
) -> tuple[Perplexity, dict[str, Any]]:
    """The scores of the documents, and the settings that they were made with. `identity` is the model's."""
    context, stride = window_sizes(model, config.context, config.stride)
    settings = {"context": context, "stride": stride, "documents": conditioning(tokenizer)}

    def compute(part: list[Document]) -> list[dict[str, Any]]:
        found = perplexity(model, tokenizer, part, context, stride, config.batch_tokens, lambda n: job.watchdog.alive())
        return [asdict(score) for score in found.documents]

    with job.runtime.autocast():
        rows = score_samples(
            job,
            "documents",
            documents,
            compute,
            content=lambda document: document.text,
            size=lambda document: len(document.text.encode()),
            budget=UNIT_BATCHES * BYTES_PER_TOKEN * config.batch_tokens,
            settings=settings | identity,
        )
    return Perplexity([DocumentScore(**row) for row in rows]), settings


def check_batching(
    config: TextConfig,
    job: Job,
    documents: Sequence[Document],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Metric, list[str]]:
    """How far batching moves a token's log-probability, measured on some documents; and a note when that is too far."""
    context, _ = window_sizes(model, config.context, config.stride)
    chosen = _chosen(documents, CHECKED_DOCUMENTS)
    with job.runtime.autocast():
        worst, n = batch_deviation(model, tokenizer, chosen, context, config.batch_tokens)
    entry = Metric(
        "batch_deviation",
        worst,
        n,
        higher_is_better=False,
        unit="nats",
        description="largest change of a token's log-probability when it is scored alone and not in its batch",
        note=f"a maximum over {len(chosen)} documents; it has no interval",
        extra={"bounds": (0, None)},
    )
    if job.runtime.precision == "bf16":
        return entry, [
            f"In bf16 batching moves a token's log-probability by up to {worst:.1e} nats (largest of {n} tokens): "
            "smaller differences between models are rounding; --precision fp32 has none above 1e-4, as a rule."
        ]
    if worst <= LARGEST_DEVIATION:
        return entry, []
    return entry, [
        f"Batching moves log-probabilities by up to {worst:.1e} nats in fp32, more than {LARGEST_DEVIATION:g}: "
        "give --batch_tokens 1 for numbers that do not depend on it."
    ]


def document_row(document: Document, score: DocumentScore) -> dict[str, Any]:
    """The row of samples.jsonl."""
    return {
        "kind": "document",
        "origin": document.origin,
        **asdict(score),
        "perplexity": score.perplexity,
        "bits_per_byte": score.nats / math.log(2) / score.bytes if score.bytes else None,
    }
