"""Evaluate the rewards that a policy implies against its reference (DPO), as `reward_accuracy` does a reward model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from data.records import Preference, plain_text
from evaluation.artefacts import describe_subject, display_name, load_language_model, provenance_of
from evaluation.judges.reward_model import CHARACTERS_PER_TOKEN, UNIT_BATCHES, longest_rows
from evaluation.loading import read_tokenizer
from evaluation.preferences.implicit import answer_logprobs, implicit_rewards
from evaluation.sample_log import score_samples
from evaluation.schema import Subject
from evaluation.scoring import check_context, context_of
from evaluation.suites.reward_accuracy import pair_notes, usable_pairs, write_accuracy
from evaluation.suites.reward_config import RewardEvaluationConfig
from launch.errors import UserError
from launch.files import canonical_json, sha256_text
from launch.stage import Job

BETA = 0.1
"""That of a policy which does not say with which it was trained: the custom of DPO."""


def evaluate(config: RewardEvaluationConfig, job: Job) -> dict[str, Any]:
    """Score both answers of each pair with both models and write results.json and samples.jsonl."""
    policy, tokenizer = load_language_model("policy", config.policy, job.runtime.device)
    _check_vocabulary(config, tokenizer)
    pairs, left_out = usable_pairs(config, context_of(policy), tokenizer)
    ours_N2, counts_N2 = _score(config, job, "policy", policy, tokenizer, pairs)
    del policy  # before the next comes: there may not be room for both
    reference, _ = load_language_model("reference", config.reference, job.runtime.device)
    theirs_N2, _ = _score(config, job, "reference", reference, tokenizer, pairs)
    beta = config.beta or provenance_of(config.policy).get("config", {}).get("beta", BETA)
    rewards_N2 = implicit_rewards(ours_N2, theirs_N2, counts_N2, beta)
    note = (
        f"Rewards are beta (log policy - log reference), summed over an answer, with beta {beta:g} and the reference "
        f"{display_name(config.reference)}; beta scales margins and calibration, and changes no order."
    )
    notes = [note, *pair_notes(config, left_out, config.policy, "policy")]
    return write_accuracy(config, job, _subject(config, beta), pairs, rewards_N2, notes)


def _check_vocabulary(config: RewardEvaluationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError when the two models do not read the same tokens: their log-probabilities could not be subtracted."""
    ours = tokenizer.get_vocab()
    theirs = read_tokenizer("reference", config.reference).get_vocab()
    if ours == theirs:
        return
    other = min(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise UserError(
        f"reference: {config.reference} has another vocabulary than the policy {config.policy} ({len(theirs)} and "
        f"{len(ours)} tokens; {other!r:.40} differs); give the model that the policy was trained from"
    )


def _score(
    config: RewardEvaluationConfig,
    job: Job,
    field: str,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Preference],
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities in nats and token counts (N, 2) of the answers under the model of a config field."""

    answers = [[(pair.chosen, True), (pair.rejected, True)] for pair in pairs]
    check_context(model, longest_rows(tokenizer, [pair.prompt for pair in pairs], answers), "row")

    def compute(part: list[Preference]) -> list[list[list[float]]]:
        alive = job.watchdog.alive
        logprobs_N2, counts_N2 = answer_logprobs(model, tokenizer, part, config.batch_tokens, lambda n: alive())
        return [list(row) for row in zip(logprobs_N2.tolist(), counts_N2.tolist(), strict=True)]

    hashes = {
        "model": describe_subject(field, getattr(config, field), "language model").sha256,
        "tokenizer": describe_subject("policy", config.policy, "language model").sha256,
    }
    with job.runtime.autocast():
        rows = score_samples(
            job,
            field,
            pairs,
            compute,
            content=lambda pair: [pair.prompt, pair.chosen, pair.rejected],
            size=lambda pair: sum(len(plain_text(text)) for text in (pair.prompt, pair.chosen, pair.rejected)),
            budget=UNIT_BATCHES * CHARACTERS_PER_TOKEN * config.batch_tokens,
            settings=hashes | {"precision": job.runtime.precision},
        )
    found = np.array(rows, dtype=float)
    return found[:, 0], found[:, 1].astype(np.int64)


def _subject(config: RewardEvaluationConfig, beta: float) -> Subject:
    """The two models and beta together: they make the rewards, as its weights make a reward model's.

    So the protocol is that of a reward model on the same pairs, and a report may put them into one table.
    """
    models = {name: describe_subject(name, getattr(config, name), "language model") for name in ("policy", "reference")}
    hashes = {name: model.sha256 for name, model in models.items()}
    name = config.name or f"{models['policy'].name} (implicit)"
    return Subject(name, "reward model", config.policy, sha256_text(canonical_json([hashes, beta])), hashes)
