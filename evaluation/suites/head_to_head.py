"""Evaluate a policy's completions against a baseline's before a judge: win rates, rewards, KL, lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.completions import Completion, align, completions_file, load_completions
from data.records import Turns
from evaluation.artefacts import (
    describe_author,
    describe_judge,
    display_name,
    protocol_of_answers,
    trained_against,
    write_result,
)
from evaluation.language.quality import length_metrics
from evaluation.preferences.accuracy import Answer, duel_outcomes
from evaluation.preferences.metrics import head_to_head_metrics
from evaluation.resolution import resolution_notes
from evaluation.sample_log import clear_samples
from evaluation.schema import Comparison, EvaluationResult, Metric, Protocol, metric, write_samples
from evaluation.statistics import mean_of, paired_difference, repeated, win_rate
from evaluation.suites.kl import estimate_kl, over_budget, sampling_temperature
from evaluation.suites.reward_config import RewardEvaluationConfig
from evaluation.suites.reward_scores import score_each
from launch.files import sha256_file
from launch.stage import Job


def evaluate(config: RewardEvaluationConfig, job: Job) -> dict[str, Any]:
    """Score both completions of each prompt and write results.json and samples.jsonl."""
    pairs = align(load_completions(config.completions), load_completions(config.baseline))
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    baseline = config.baseline_name or display_name(config.baseline)
    prompts = [row.prompt_text for row in ours]
    rewards = judge_rewards("judge", config.judge, config, job, [*ours, *theirs])
    mine, other = rewards[: len(ours)], rewards[len(ours) :]
    lengths = np.array([len(a.text) - len(b.text) for a, b in pairs], dtype=float)
    won = duel_outcomes(mine, other, _answers(ours), _answers(theirs))
    metrics = head_to_head_metrics(mine, other, won, lengths, prompts, baseline)
    columns = {"reward": mine, "baseline_reward": other, "outcome": won}
    metrics += _human_reference_metrics(config, job, ours, mine)
    if config.proxy:
        columns["proxy_reward"] = judge_rewards("proxy", config.proxy, config, job, ours)
        metrics.append(_proxy_metric(columns["proxy_reward"], mine, prompts))
    temperature = sampling_temperature(config)
    if config.policy:
        columns["kl_k1"], columns["kl_k3"], found = estimate_kl(config, job, ours, temperature)
        metrics += found
    metrics += _compared_lengths(ours, theirs, baseline)
    rows = [_row(*pair, {k: float(v[i]) for k, v in columns.items()}) for i, pair in enumerate(pairs)]
    subject = describe_author("completions", config.completions, config.name)
    protocol = _protocol(config, job, ours, baseline, temperature)
    result = EvaluationResult(
        suite="win-rate",
        subject=subject,
        protocol=protocol,
        metrics=metrics,
        samples=write_samples(job.output_dir, rows) if job.runtime.is_main else None,
        notes=[*over_budget(metrics, config.kl_budget), *trained_against(subject, protocol.judge)],
        resolution=resolution_notes(metrics),
    )
    summary = write_result(job, result)
    clear_samples(job)
    return summary


def _answers(rows: Sequence[Completion]) -> list[Answer]:
    """What the judge reads of each completion."""
    return [(row.text, row.finished) for row in rows]


def judge_rewards(
    field: str, source: str, config: RewardEvaluationConfig, job: Job, rows: Sequence[Completion], name: str = ""
) -> np.ndarray:
    """Rewards (n,) of completions from the reward model `source`; unfinished ones are read without an EOS."""
    answers: list[tuple[Turns, bool]] = [(r.text, r.finished) for r in rows]
    return score_each(job, field, source, config.batch_tokens, [r.prompt for r in rows], answers, name)


def _human_reference_metrics(
    config: RewardEvaluationConfig, job: Job, ours: Sequence[Completion], mine: np.ndarray
) -> list[Metric]:
    """The judge's view of human-written references, where every row has one: the ceiling."""
    if not all(row.reference for row in ours):
        return []
    human_references = [dataclasses.replace(row, text=row.reference or "", finished=True) for row in ours]
    human_rewards = judge_rewards("judge", config.judge, config, job, human_references, "references")
    groups = repeated([row.prompt_text for row in ours])
    won = duel_outcomes(mine, human_rewards, _answers(ours), _answers(human_references))
    text = "mean reward that the judge gives to the human-written references"
    return [
        metric(
            "win_rate_against_reference",
            win_rate(won, groups),
            "prompts on which the judge prefers the completion to the human-written reference",
            higher_is_better=True,
            unit="share",
        ),
        metric("reference_judge_reward", mean_of(human_rewards, groups), text, higher_is_better=None, unit="reward"),
    ]


def _proxy_metric(proxy: np.ndarray, judge: np.ndarray, prompts: Sequence[str]) -> Metric:
    spread = float(proxy.std() * judge.std())
    correlation = float(np.mean((proxy - proxy.mean()) * (judge - judge.mean())) / spread) if spread > 0 else None
    return metric(
        "proxy_reward",
        mean_of(proxy, repeated(prompts)),
        "mean reward by the model that the policy was trained against",
        higher_is_better=None,
        unit="reward",
        correlation_with_judge=correlation,
    )


# ---------------------------------------------------------------------------------------------- record


def _compared_lengths(ours: Sequence[Completion], theirs: Sequence[Completion], baseline: str) -> list[Metric]:
    """Lengths and share finished of the policy, each compared with the baseline on the same prompts."""
    groups = repeated([row.prompt_text for row in ours])
    values = {
        "mean_length": lambda row: float(len(row.completion_ids)),
        "mean_characters": lambda row: float(len(row.text)),
        "share_finished": lambda row: float(row.finished),
    }
    compared = []
    for entry in length_metrics(ours):
        read = values[entry.name]
        found = paired_difference([read(r) for r in ours], [read(r) for r in theirs], clusters=groups)
        compared.append(dataclasses.replace(entry, baseline=baseline, comparison=Comparison.of(baseline, found)))
    return compared


def _protocol(
    config: RewardEvaluationConfig, job: Job, ours: Sequence[Completion], baseline: str, temperature: float | None
) -> Protocol:
    answered = protocol_of_answers(config.completions, ours)
    return dataclasses.replace(
        answered,
        template="prompt + completion (+ EOS if finished), or the tokenizer's chat template",
        judge=describe_judge("judge", config.judge),
        baseline=baseline,
        seeds=[config.seed, *answered.seeds],
        settings={
            "precision": job.runtime.precision,
            "length_unit": "characters",
            "kl_temperature": temperature,
            "completions_sha256": sha256_file(completions_file(config.completions)),
            "baseline_sha256": sha256_file(completions_file(config.baseline)),
        },
    )


def _row(ours: Completion, theirs: Completion, numbers: dict[str, float]) -> dict[str, Any]:
    return {
        "id": ours.id,
        "prompt": ours.prompt_text,
        "completion": ours.text,
        "baseline_completion": theirs.text,
        "reference": ours.reference,
        "tokens": len(ours.completion_ids),
        "baseline_tokens": len(theirs.completion_ids),
        "finished": ours.finished,
        **numbers,
    }
