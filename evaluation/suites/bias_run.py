"""The work of `alignkit evaluate bias`: score the options of every item, measure each set, write the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForMaskedLM

from data.named_splits import lowest_hashes
from evaluation.artefacts import describe_subject, load_language_model, write_result
from evaluation.loading import load_merged, named_errors, read_tokenizer, refuse_missing
from evaluation.resolution import resolution_notes
from evaluation.safety.choices import (
    Item,
    Score,
    Scores,
    causal_ids,
    causal_scores,
    find_unscorable,
    item_length,
    masked_ids,
    pseudo_scores,
)
from evaluation.safety.likelihood_sets import LIKELIHOOD_SETS
from evaluation.safety.public_sets import check_sources, size_note
from evaluation.safety.truthfulness import QUESTION, SUGGESTION
from evaluation.sample_log import clear_samples, score_samples
from evaluation.schema import EvaluationResult, Protocol, Slice, write_samples
from evaluation.scoring import context_of
from evaluation.suites.bias import BiasConfig
from launch.errors import UserError
from launch.files import sha256_text
from launch.provenance import fingerprint_input
from launch.stage import Job
from launch.zero import plain_weights

UNIT_CHARACTERS = 40_000  # of the items that are scored and then logged together
LEAST = 20  # items that a group needs for a slice of its own
Compute = Callable[[list[Item]], list[list[Score]]]
Check = Callable[[Item], object]


def run(config: BiasConfig, job: Job) -> dict[str, Any]:
    """Write results.json and samples.jsonl of each set into a folder of its name.

    A result for each set: numbers of CrowS-Pairs meet others of CrowS-Pairs, whatever sets were measured beside them.
    """
    check_sources(config.sources())
    read = {name: choose_items(_load(name, source), config) for name, source in config.sources().items()}
    compute, check = _scorer(config, job)
    sets = {name: leave_out(name, items, check, config.invalid) for name, items in read.items()}
    subject = describe_subject("model", config.model, "language model", config.name)
    settings = {"model": subject.sha256, "likelihood": config.likelihood, "precision": job.runtime.precision}
    summary: dict[str, Any] = {}
    for name, (items, left_out) in sets.items():
        scores = score_items(job, name, items, compute, settings)
        folder = job.output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = [_row(name, item, found) for item, found in zip(items, scores, strict=True)]
        metrics = LIKELIHOOD_SETS[name].measure(items, scores)
        result = EvaluationResult(
            suite="bias",
            subject=subject,
            protocol=_protocol(name, config, job, len(items), left_out),
            metrics=metrics,
            slices=_slices(name, items, scores),
            samples=write_samples(folder, rows) if job.runtime.is_main else None,
            notes=[note for note in [size_note(name, len(read[name])), _left_out_note(name, left_out, read)] if note],
            resolution=resolution_notes(metrics, [m.name for m in metrics]),
        )
        summary |= write_result(job, result, folder)
    clear_samples(job)
    return summary


def _load(name: str, source: str) -> list[Item]:
    items = LIKELIHOOD_SETS[name].load(source)
    if not items:
        raise UserError(f"{name}: {source} holds no items; give the whole set")
    return items


def leave_out(
    name: str, items: list[Item], check: Check, invalid: Literal["error", "drop"]
) -> tuple[list[Item], dict[str, str]]:
    """The items of a set that can be scored, and id -> fault of the others. UserError for these, unless they may be left out.

    Before anything is scored: an item that is too long would lose what was scored of the sets before it.
    """
    faults = find_unscorable(items, check)
    if faults and (invalid == "error" or len(faults) == len(items)):
        count = f"{len(faults)} of {len(items)} items of {name}"
        remedy = "; invalid: drop leaves them out" if len(faults) < len(items) else ""
        raise UserError(f"{next(iter(faults.values()))} ({count}{remedy})")
    kept = [item for number, item in enumerate(items) if number not in faults]
    return kept, {items[number].id: fault for number, fault in faults.items()}


def _left_out_note(name: str, left_out: dict[str, str], read: dict[str, list[Item]]) -> str:
    if not left_out:
        return ""
    first = next(iter(left_out.values()))
    return f"{len(left_out)} of {len(read[name])} items are left out, for the model cannot score them (the first: {first})."


def choose_items(items: list[Item], config: BiasConfig) -> list[Item]:
    """All items of a set, or with `max_items` those with the lowest content hash, in their order."""

    def text(item: Item) -> str:
        return "\n".join(f"{o.context}{o.text}" for o in item.options)

    return lowest_hashes(items, text, config.max_items, "evaluate bias")


def _scorer(config: BiasConfig, job: Job) -> tuple[Compute, Check]:
    """The function that scores items, with the model loaded, and one that raises a UserError for an item that it could not."""
    if config.likelihood == "causal":
        model, tokenizer = load_language_model("model", config.model, job.runtime.device)
        limit = context_of(model)
        return (
            lambda items: causal_scores(model, tokenizer, items, config.batch_tokens),
            lambda item: causal_ids(tokenizer, item, limit),
        )
    masked, masked_tokenizer = load_masked("model", config.model, job.runtime.device)
    longest = context_of(masked)
    return (
        lambda items: [pseudo_scores(masked, masked_tokenizer, item, config.batch_tokens) for item in items],
        lambda item: masked_ids(masked_tokenizer, item, longest),
    )


def load_masked(field: str, source: str, device: torch.device) -> tuple[Any, Any]:
    """A masked language model and its tokenizer; UserError for another kind of model."""
    tokenizer = read_tokenizer(field, source)
    if tokenizer.mask_token_id is None:
        raise UserError(
            f"{field}: {source}: its tokenizer has no mask token; set likelihood: causal, or give a masked model"
        )
    with plain_weights(), named_errors(field, source, "a masked language model") as name:
        loaded, missing = load_merged(field, name, AutoModelForMaskedLM)
    refuse_missing(field, source, missing, "masked language model", "set likelihood: causal, or give a masked model")
    model: Any = loaded
    return model.to(device).eval(), tokenizer


def score_items(job: Job, name: str, items: Sequence[Item], compute: Compute, settings: dict[str, Any]) -> Scores:
    """The scores of all items, in their order, on every rank. `settings`: what they depend on besides the items."""

    with job.runtime.autocast():
        found = score_samples(
            job,
            name,
            items,
            compute,
            content=lambda item: [[option.context, option.text] for option in item.options],
            size=item_length,
            budget=UNIT_CHARACTERS,
            settings=settings,
        )
    return [[Score(*score) for score in row] for row in found]


def _slices(name: str, items: Sequence[Item], scores: Scores) -> list[Slice]:
    """The set's metrics for each group of LEAST items; none where all items are of one group."""
    groups = sorted({item.group for item in items if item.group})
    found = []
    for group in groups if len(groups) > 1 else []:
        inside = [n for n, item in enumerate(items) if item.group == group]
        if len(inside) >= LEAST:
            measured = LIKELIHOOD_SETS[name].measure([items[n] for n in inside], [scores[n] for n in inside])
            found.append(Slice(f"{name} group", group, measured))
    return found


def _row(name: str, item: Item, scores: Sequence[Score]) -> dict[str, Any]:
    """The row of samples.jsonl: ids and numbers, no text; whether it is right, where the set knows that."""
    right = LIKELIHOOD_SETS[name].right
    return {
        "id": item.id,
        "chosen": int(np.argmax([score.nats for score in scores])),
        **({"correct": right(item, scores)} if right else {}),
        "group": item.group,
        "nats": [score.nats for score in scores],
        "tokens": [score.tokens for score in scores],
        **{key: value for key, value in item.facts.items() if key != "question"},
    }


def _protocol(name: str, config: BiasConfig, job: Job, n: int, left_out: dict[str, str]) -> Protocol:
    return Protocol(
        dataset=name,
        dataset_sha256=fingerprint_input(name, config.sources()[name])["sha256"],
        n_items=n,
        template={"truthfulqa": QUESTION, "suggested_answer": SUGGESTION}.get(name, ""),
        settings={
            "likelihood": config.likelihood,
            "max_items": config.max_items,
            "precision": job.runtime.precision,
            # other items, other numbers: a model that was asked all of them is not compared
            **({"left_out_sha256": sha256_text("\n".join(sorted(left_out)))} if left_out else {}),
        },
    )
