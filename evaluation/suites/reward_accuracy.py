"""Evaluate a reward model on held-out preferences, and whatever else gives rewards to both answers of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data import load_preferences, plain_text
from data.records import Preference
from evaluation.artefacts import describe_subject, load_reward_model, trained_with, write_result
from evaluation.preferences.metrics import accuracy_metric, accuracy_metrics
from evaluation.preferences.reward_metrics import ensemble_metrics, section_metrics
from evaluation.preferences.slices import rows_by_label
from evaluation.resolution import resolution_notes
from evaluation.sample_log import clear_samples
from evaluation.schema import EvaluationResult, Metric, Protocol, Slice, Subject, write_samples
from evaluation.scoring import context_of, encode
from evaluation.suites.reward_config import RewardEvaluationConfig
from evaluation.suites.reward_scores import Answers, score_answers
from launch.errors import UserError
from launch.files import sha256_text
from launch.provenance import fingerprint_input
from launch.stage import Job

RESOLVED = ("accuracy", "rewardbench")
"""Metrics whose smallest resolvable difference (to another reward model) is told."""


def evaluate(config: RewardEvaluationConfig, job: Job) -> dict[str, Any]:
    """Score both answers of each pair and write results.json and samples.jsonl."""
    model, tokenizer = load_reward_model("model", config.model, job.runtime.device)
    pairs, left_out = usable_pairs(config, context_of(model), tokenizer)
    rewards_N2 = _score(config, job, pairs, "model", config.model, (model, tokenizer))
    margins_MN = _ensemble_margins(config, job, pairs, rewards_N2[:, 0] - rewards_N2[:, 1])
    more = ensemble_metrics(margins_MN, [plain_text(p.prompt) for p in pairs])
    subject = describe_subject("model", config.model, "reward model", config.name)
    notes = pair_notes(config, left_out, config.model, "reward model")
    each = [{"margins": own.tolist()} for own in margins_MN.T] if config.ensemble else []
    return write_accuracy(config, job, subject, pairs, rewards_N2, notes, more, each)


def write_accuracy(
    config: RewardEvaluationConfig,
    job: Job,
    subject: Subject,
    pairs: Sequence[Preference],
    rewards_N2: np.ndarray,
    notes: list[str],
    more: Sequence[Metric] = (),
    more_of_rows: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Write results.json and samples.jsonl of a subject's rewards (N, 2) for the chosen and the rejected answers.

    `more` metrics, and fields of each row, follow those that every subject has.
    """
    chosen, rejected = rewards_N2.T
    margins, lengths = chosen - rejected, _length_differences(pairs)
    prompts = [plain_text(p.prompt) for p in pairs]
    rows = [_row(*values) for values in zip(pairs, chosen, rejected, strict=True)]
    if more_of_rows:
        rows = [row | further for row, further in zip(rows, more_of_rows, strict=True)]
    metrics = [
        *accuracy_metrics(margins, lengths, prompts, config.ties, config.seed),
        *section_metrics([p.source for p in pairs], margins),
        *more,
    ]
    result = EvaluationResult(
        suite="reward",
        subject=subject,
        protocol=Protocol(
            dataset=config.preferences,
            dataset_sha256=fingerprint_input("preferences", config.preferences)["sha256"],
            n_items=len(pairs),
            split=config.preferences.partition("::")[2],
            template="prompt + answer + EOS, or the tokenizer's chat template",
            seeds=[config.seed],
            settings={
                "invalid": config.invalid,
                "ties": config.ties,
                "precision": job.runtime.precision,
                "length_unit": "characters",
            },
        ),
        metrics=metrics,
        slices=[
            *slices("source", [p.source for p in pairs], margins, lengths, prompts, config),
            *slices("criteria", [p.criteria for p in pairs], margins, lengths, prompts, config),
        ],
        samples=write_samples(job.output_dir, rows) if job.runtime.is_main else None,
        notes=notes,
        resolution=resolution_notes(metrics, RESOLVED),
    )
    summary = write_result(job, result)
    clear_samples(job)
    return summary


def _ensemble_margins(
    config: RewardEvaluationConfig, job: Job, pairs: Sequence[Preference], margins: np.ndarray
) -> np.ndarray:
    """Margins (M, n) of the model and of each further one."""
    others = [
        _score(config, job, pairs, f"ensemble[{number}]", source) for number, source in enumerate(config.ensemble)
    ]
    return np.stack([margins, *(rewards[:, 0] - rewards[:, 1] for rewards in others)])


def usable_pairs(
    config: RewardEvaluationConfig, limit: int | None, tokenizer: Any
) -> tuple[list[Preference], list[str]]:
    """The pairs that people decided and a model can read, and what says how many others are left out, and why.

    `limit` is the model's context in tokens, None for one without a limit.
    """
    pairs = load_preferences(config.preferences, config.invalid)
    decided = [p for p in pairs if not p.tie]
    left_out = [f"{len(pairs) - len(decided)} pairs that people called ties"] if len(decided) < len(pairs) else []
    if not decided:
        raise UserError(f"preferences: {config.preferences} holds ties only; give pairs with a preference")
    if config.invalid == "drop" and limit is not None:
        prompts = [p.prompt for p in decided]
        lengths = [encode(tokenizer, prompts, [getattr(p, side) for p in decided]) for side in ("chosen", "rejected")]
        fitting = [p for p, c, r in zip(decided, *lengths, strict=True) if max(len(c), len(r)) <= limit]
        if not fitting:
            raise UserError(f"preferences: every pair of {config.preferences} is longer than the context of {limit}")
        if len(fitting) < len(decided):
            left_out.append(f"{len(decided) - len(fitting)} pairs longer than the model's context of {limit} tokens")
        decided = fitting
    if config.max_pairs is not None:
        decided = sorted(decided, key=lambda p: sha256_text(plain_text(p.prompt)))[: config.max_pairs]
    return decided, left_out


def _score(
    config: RewardEvaluationConfig, job: Job, pairs: Sequence[Preference], field: str, source: str, loaded: Any = None
) -> np.ndarray:
    """Rewards (n, 2) of the chosen and the rejected answers by one model."""
    items: list[Answers] = [(p.prompt, ((p.chosen, True), (p.rejected, True))) for p in pairs]
    name = field.replace("[", "-").rstrip("]")
    return np.array(score_answers(job, field, source, config.batch_tokens, items, loaded, name))


def _length_differences(pairs: Sequence[Preference]) -> np.ndarray:
    return np.array([len(plain_text(p.chosen)) - len(plain_text(p.rejected)) for p in pairs], dtype=float)


def slices(
    group: str,
    labels: Sequence[str],
    margins: np.ndarray,
    lengths: np.ndarray,
    prompts: Sequence[str],
    config: RewardEvaluationConfig,
) -> list[Slice]:
    """Accuracy for each label."""
    found = []
    for name, inside in rows_by_label(labels).items():
        part = accuracy_metric(margins[inside], lengths[inside], [prompts[i] for i in inside], config.ties)
        found.append(Slice(group, name or "unnamed", [part]))
    return found


def pair_notes(config: RewardEvaluationConfig, left_out: Sequence[str], model: str, role: str) -> list[str]:
    """What must be said of the pairs: those that are left out, and that a model (of this role) was trained with them."""
    fingerprint = fingerprint_input("preferences", config.preferences)["sha256"]
    return [f"{text} are left out." for text in left_out] + trained_with(model, fingerprint, role)


def _row(pair: Preference, chosen: float, rejected: float) -> dict[str, Any]:
    return {
        "prompt": plain_text(pair.prompt),
        "chosen": plain_text(pair.chosen),
        "rejected": plain_text(pair.rejected),
        "source": pair.source,
        "criteria": pair.criteria,
        "reward_chosen": float(chosen),
        "reward_rejected": float(rejected),
        "margin": float(chosen - rejected),
    }
