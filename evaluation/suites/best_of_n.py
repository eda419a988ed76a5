"""Evaluate best-of-n sampling: the judge's reward of the sample that a proxy likes best, as n grows, with its KL bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from data.completions import Completion, completions_file, load_completions
from data.records import Turns
from evaluation.artefacts import describe_author, describe_judge, protocol_of_answers, trained_against, write_result
from evaluation.preferences.reward_metrics import best_of_n_metrics
from evaluation.resolution import resolution_notes
from evaluation.sample_log import clear_samples
from evaluation.schema import EvaluationResult, Subject, write_samples
from evaluation.suites.reward_config import RewardEvaluationConfig
from evaluation.suites.reward_scores import score_each
from launch.errors import UserError
from launch.files import sha256_file
from launch.stage import Job


def evaluate(config: RewardEvaluationConfig, job: Job) -> dict[str, Any]:
    """Score all samples with judge and proxy and write results.json and samples.jsonl."""
    rows = load_completions(config.completions)
    groups = _samples_of_prompts(rows, config.completions)
    prompts: list[Turns] = [r.prompt for r in rows]
    answers: list[tuple[Turns, bool]] = [(r.text, r.finished) for r in rows]
    judged = score_each(job, "judge", config.judge, config.batch_tokens, prompts, answers)
    proxy = score_each(job, "proxy", config.proxy, config.batch_tokens, prompts, answers) if config.proxy else judged
    metrics = best_of_n_metrics(
        [proxy[g] for g in groups], [judged[g] for g in groups], proxy_is_judge=not config.proxy
    )
    numbers = zip(rows, judged.tolist(), proxy.tolist(), strict=True)
    samples = [
        {"id": r.id, "prompt": r.prompt_text, "completion": r.text, "judge_reward": j, "proxy_reward": p}
        for r, j, p in numbers
    ]
    subject = describe_author("completions", config.completions, config.name)
    answered = protocol_of_answers(config.completions, rows)
    result = EvaluationResult(
        suite="best-of-n",
        subject=subject,
        protocol=replace(
            answered,
            n_items=len(groups),
            judge=describe_judge("judge", config.judge),
            seeds=[config.seed, *answered.seeds],
            settings={
                "samples_per_prompt": min(map(len, groups)),
                "proxy": describe_judge("proxy", config.proxy).sha256 if config.proxy else "the judge itself",
                "precision": job.runtime.precision,
                "completions_sha256": sha256_file(completions_file(config.completions)),
            },
        ),
        metrics=metrics,
        samples=write_samples(job.output_dir, samples) if job.runtime.is_main else None,
        notes=_notes(config, subject),
        resolution=resolution_notes(metrics),
    )
    summary = write_result(job, result)
    clear_samples(job)
    return summary


def _samples_of_prompts(rows: list[Completion], source: str) -> list[np.ndarray]:
    """The row numbers of each prompt's samples."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.prompt_text, []).append(number)
    if single := next((g for g in groups.values() if len(g) < 2), None):
        raise UserError(
            f"completions: {rows[single[0]].origin}: this prompt has one sample, and best-of-n needs several; "
            f"generate {source} again with --samples 16"
        )
    return [np.array(g) for g in groups.values()]


def _notes(config: RewardEvaluationConfig, subject: Subject) -> list[str]:
    notes = []
    if not config.proxy:
        notes.append(
            "The judge chose the samples that it was then asked about: the curve can only rise. Give --proxy the model that is to choose."
        )
    return notes + trained_against(subject, describe_judge("judge", config.judge))
