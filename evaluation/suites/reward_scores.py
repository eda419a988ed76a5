"""Rewards of completions in a suite, divided over processes, each written down when it is known; see evaluation/sample_log.py."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.records import Turns, plain_text
from evaluation.artefacts import describe_judge, load_reward_model
from evaluation.judges.reward_model import CHARACTERS_PER_TOKEN, UNIT_BATCHES, longest_rows, rewards_of
from evaluation.sample_log import score_samples
from evaluation.scoring import check_context
from launch.stage import Job

Answers = tuple[Turns, tuple[tuple[Turns, bool], ...]]
"""A prompt, and answers to it, each with whether it ended; the prompt runs once for all of them."""


def score_answers(
    job: Job,
    field: str,
    source: str,
    batch_tokens: int,
    items: Sequence[Answers],
    loaded: tuple[Any, Any] | None = None,
    name: str = "",
) -> list[list[float]]:
    """Rewards of each item's answers by the reward model `source` of the config field `field`, which may be `loaded`."""
    model, tokenizer = loaded or load_reward_model(field, source, job.runtime.device)
    check_context(model, longest_rows(tokenizer, [p for p, _ in items], [answers for _, answers in items]), "row")

    def compute(part: list[Answers]) -> list[list[float]]:
        prompts = [prompt for prompt, answers in part for _ in answers]
        texts = [text for _, answers in part for text, _ in answers]
        ended = [end for _, answers in part for _, end in answers]
        rewards = iter(rewards_of(model, tokenizer, prompts, texts, ended, batch_tokens, job.watchdog.alive))
        return [list(itertools.islice(rewards, len(answers))) for _, answers in part]

    with job.runtime.autocast():
        return score_samples(
            job,
            name or field,
            items,
            compute,
            content=lambda item: item,
            size=_size,
            budget=UNIT_BATCHES * CHARACTERS_PER_TOKEN * batch_tokens,
            settings={"model": describe_judge(field, source).sha256, "precision": job.runtime.precision},
        )


def _size(item: Answers) -> int:
    """Characters that are read."""
    prompt, answers = item
    return len(plain_text(prompt)) + sum(len(plain_text(text)) for text, _ in answers)


def score_each(
    job: Job,
    field: str,
    source: str,
    batch_tokens: int,
    prompts: Sequence[Turns],
    answers: Sequence[tuple[Turns, bool]],
    name: str = "",
) -> np.ndarray:
    """Rewards (n,) of single answers to prompts. Each call of a suite has a `name` of its own, the field's unless given."""
    items: list[Answers] = [(prompt, (answer,)) for prompt, answer in zip(prompts, answers, strict=True)]
    scored = score_answers(job, field, source, batch_tokens, items, name=name)
    return np.array([rewards[0] for rewards in scored])
