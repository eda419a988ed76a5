"""Completions of `alignkit evaluate text`: their quality, and MAUVE between them and the references that people wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data.completions import Completion, completions_file, load_completions
from evaluation.artefacts import content_hash, display_name, load_language_model, protocol_of_answers
from evaluation.language.hidden_states import last_hidden_states
from evaluation.language.mauve import halves, mauve
from evaluation.language.quality import is_degenerate, quality_metrics, repetition
from evaluation.schema import Metric, metric
from evaluation.suites.text import TextConfig
from evaluation.suites.text_part import Part
from launch.errors import UserError
from launch.files import sha256_file
from launch.provenance import fingerprint_input
from launch.stage import Job

FEWEST = 20


def first_of_each_prompt(rows: Sequence[Completion]) -> list[Completion]:
    """One completion for each prompt, the first: of several samples each would repeat the one reference."""
    return list({row.prompt_text: row for row in reversed(rows)}.values())[::-1]


def completion_parts(config: TextConfig, job: Job) -> list[Part]:
    """What the completions gave, and what MAUVE gave, which depends on more: references, features and arithmetic."""
    if not config.completions:
        return []
    rows = load_completions(config.completions)
    answered = protocol_of_answers(config.completions, rows)
    own = {"completions_sha256": sha256_file(completions_file(config.completions))}
    protocol = replace(answered, settings=own)
    parts = [Part("completions", protocol, quality_metrics(rows), [completion_row(row) for row in rows])]
    if config.features:
        compared = _with_references(rows, config.completions)
        protocol = replace(
            answered,
            dataset_sha256=content_hash([row.prompt, row.reference] for row in compared),
            n_items=len(compared),
            seeds=[config.seed, *answered.seeds],
            settings=own
            | {
                "features": fingerprint_input("features", config.features)["sha256"],
                "precision": job.runtime.precision,
            },
        )
        parts.append(Part("mauve", protocol, mauve_metrics(config, job, compared)))
    return parts


def completion_row(row: Completion) -> dict[str, Any]:
    """The row of samples.jsonl."""
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


def _with_references(rows: Sequence[Completion], source: str) -> list[Completion]:
    """One completion of each prompt that has a reference. UserError for too few."""
    rows = first_of_each_prompt([row for row in rows if row.reference is not None and row.text.strip()])
    if len(rows) < FEWEST:
        raise UserError(
            f"features: MAUVE compares completions with references, and {source} has {len(rows)} prompts with both; "
            f"give at least {FEWEST}, or leave --features out"
        )
    return rows


def mauve_metrics(config: TextConfig, job: Job, rows: Sequence[Completion]) -> list[Metric]:
    """`mauve` and `mauve_ceiling` of completions with references, in the features of a model."""
    model, tokenizer = load_language_model("features", config.features, job.runtime.device)
    with job.runtime.autocast():
        ours, human = (
            last_hidden_states(model, tokenizer, texts, config.batch_tokens)
            for texts in ([r.prompt_text + r.text for r in rows], [r.prompt_text + str(r.reference) for r in rows])
        )
    first, second = halves(len(rows), config.seed)
    ceiling = mauve(human[first], human[second], config.seed, max(2, len(rows) // 10))
    name = display_name(config.features)
    return [
        metric(
            "mauve",
            mauve(ours, human, config.seed),
            f"area under the divergence curve between completions and references, features of {name}",
            higher_is_better=True,
            bounds=(0, 1),
        ),
        metric(
            "mauve_ceiling",
            ceiling,
            "the same between two halves of the references: what text as good as theirs would score on half as many",
            higher_is_better=None,
            bounds=(0, 1),
        ),
    ]
