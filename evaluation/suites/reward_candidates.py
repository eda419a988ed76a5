"""Evaluate a reward model on prompts with several answers, as RewardBench 2 does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.candidates import Candidates, load_candidates
from data.records import plain_text
from evaluation.artefacts import describe_subject, write_result
from evaluation.preferences.reward_metrics import mean_of_parts
from evaluation.preferences.rewardbench import TIES_BOUNDS, best_of_credit, credit_estimate, ties_prompt, ties_score
from evaluation.resolution import resolution_notes
from evaluation.sample_log import clear_samples
from evaluation.schema import EvaluationResult, Metric, Protocol, Slice, metric, write_samples
from evaluation.statistics import Estimate, mean_of, paired_difference, repeated
from evaluation.suites.reward_config import RewardEvaluationConfig
from evaluation.suites.reward_scores import Answers, score_answers
from launch.errors import UserError
from launch.provenance import fingerprint_input
from launch.stage import Job

TIES, TIES_NAME = "ties", "Ties"
"""The subset, in lower case, that is scored by its own rule."""
RESOLVED = ("mean_of_subsets", "best_of_candidates", "ties_score")
"""Metrics whose smallest resolvable difference (to another reward model) is told."""


def evaluate(config: RewardEvaluationConfig, job: Job) -> dict[str, Any]:
    """Score all answers of each prompt and write results.json and samples.jsonl."""
    items = load_candidates(config.candidates)
    asked: list[Answers] = [(c.prompt, tuple((text, True) for text in c.answers)) for c in items]
    scores = score_answers(job, "model", config.model, config.batch_tokens, asked)
    metrics, slices = candidate_metrics(items, scores)
    rows = [_row(item, values) for item, values in zip(items, scores, strict=True)]
    result = EvaluationResult(
        suite="reward-candidates",
        subject=describe_subject("model", config.model, "reward model", config.name),
        protocol=Protocol(
            dataset=config.candidates,
            dataset_sha256=fingerprint_input("candidates", config.candidates)["sha256"],
            n_items=len(items),
            template="prompt + answer + EOS, or the tokenizer's chat template",
            settings={"precision": job.runtime.precision, "length_unit": "characters"},
        ),
        metrics=metrics,
        slices=slices,
        samples=write_samples(job.output_dir, rows) if job.runtime.is_main else None,
        resolution=resolution_notes(metrics, RESOLVED),
    )
    summary = write_result(job, result)
    clear_samples(job)
    return summary


def candidate_metrics(
    items: Sequence[Candidates], scores: Sequence[Sequence[float]]
) -> tuple[list[Metric], list[Slice]]:
    """Credit for ranking a right answer first, by subset and over all; the rule for Ties; content-blind baselines."""
    plain = [i for i, item in enumerate(items) if item.subset.lower() != TIES]
    ties = _ties(
        [item for item in items if item.subset.lower() == TIES],
        [s for i, s in zip(items, scores, strict=True) if i.subset.lower() == TIES],
    )
    parts: dict[str, Estimate] = {}
    metrics: list[Metric] = []
    if plain:
        chosen, own = [items[i] for i in plain], [scores[i] for i in plain]
        credit = np.array([best_of_credit(s, len(item.right)) for item, s in zip(chosen, own, strict=True)])
        metrics = _credit_metrics(chosen, credit)
        prompts = [plain_text(item.prompt) for item in chosen]
        for name in dict.fromkeys(item.subset for item in chosen):
            inside = [n for n, item in enumerate(chosen) if item.subset == name]
            groups = repeated([prompts[n] for n in inside])
            parts[name] = credit_estimate(credit[inside], [name] * len(inside), groups)
    if ties is not None:
        parts[TIES_NAME] = ties
        metrics.append(_ties_metric(ties))
    if len(parts) > 1:
        text = "mean of the subsets' scores: RewardBench 2's, where the subsets are its"
        whole, bounds = mean_of_parts(list(parts.values())), np.mean([_bounds(name) for name in parts], axis=0)
        metrics.insert(
            0, metric("mean_of_subsets", whole, text, higher_is_better=True, unit="share", bounds=bounds.tolist())
        )
    slices = [Slice("subset", name or "unnamed", [_subset_metric(name, estimate)]) for name, estimate in parts.items()]
    return metrics, slices if len(slices) > 1 else []


def _credit_metrics(items: Sequence[Candidates], credit: np.ndarray) -> list[Metric]:
    groups = repeated([plain_text(item.prompt) for item in items])
    lengths = [[float(len(text)) for text in item.answers] for item in items]
    rights = [len(item.right) for item in items]
    longest = np.array([best_of_credit(s, r) for s, r in zip(lengths, rights, strict=True)])
    shortest = np.array([best_of_credit([-v for v in s], r) for s, r in zip(lengths, rights, strict=True)])
    chance = np.array([r / len(s) for s, r in zip(lengths, rights, strict=True)])
    subsets = [item.subset for item in items]
    rows = [
        (
            "best_of_candidates",
            credit_estimate(credit, subsets, groups),
            "prompts with a right answer ranked first; 1/k where k answers tie for it",
            True,
        ),
        (
            "baseline_longest",
            credit_estimate(longest, subsets, groups),
            "the same for a judge that reads nothing and prefers the longest answer",
            None,
        ),
        ("baseline_shortest", credit_estimate(shortest, subsets, groups), "the same for the shortest answer", None),
        ("baseline_chance", mean_of(chance, groups), "the same for an answer drawn at random", None),
    ]
    difference = paired_difference(credit, chance, clusters=groups)
    return [
        metric(
            name,
            estimate,
            text,
            higher_is_better=direction,
            unit="share",
            baseline="chance" if direction else None,
            difference=difference if direction else None,
        )
        for name, estimate, text, direction in rows
    ]


def _ties(items: Sequence[Candidates], scores: Sequence[Sequence[float]]) -> Estimate | None:
    """RewardBench 2's score of Ties, from ids `ref:N` (one right answer) and `tied:N` (many). None without any."""
    kinds: dict[str, dict[str, Any]] = {"ref": {}, "tied": {}}
    for item, values in zip(items, scores, strict=True):
        kind, colon, number = item.id.partition(":")
        if kind not in kinds or not colon:
            raise UserError(
                f"candidates: id {item.id!r} of subset Ties is not ref:N or tied:N; name them as RewardBench 2 does"
            )
        if kind == "tied" and len(item.right) < 2:
            raise UserError(
                f"candidates: {item.id} has one right answer; tied prompts have several, call it ref:{number}"
            )
        if number in kinds[kind]:
            raise UserError(f"candidates: id {item.id!r} of subset Ties occurs twice; give each prompt its own number")
        kinds[kind][number] = ties_prompt(values, len(item.right))
    return ties_score(kinds["ref"], kinds["tied"])


def _ties_metric(estimate: Estimate) -> Metric:
    return metric(
        "ties_score",
        estimate,
        "RewardBench 2's Ties: .3 accuracy of many right answers, .3 of one, .2 margin, .2 hard margin, .01 size; at most 1.01",
        higher_is_better=True,
        unit="share",
        bounds=TIES_BOUNDS,
    )


def _bounds(subset: str) -> tuple[float, float]:
    """The least and the largest score of a subset."""
    return TIES_BOUNDS if subset == TIES_NAME else (0.0, 1.0)


def _subset_metric(name: str, estimate: Estimate) -> Metric:
    text = "score of the subset"
    return metric("best_of_candidates", estimate, text, higher_is_better=True, unit="share", bounds=_bounds(name))


def _row(item: Candidates, scores: Sequence[float]) -> dict[str, Any]:
    top = max(scores)
    return {
        "id": item.id,
        "subset": item.subset,
        "prompt": plain_text(item.prompt),
        "right": list(item.right),
        "wrong": list(item.wrong),
        "rewards": list(scores),
        "correct": any(score == top for score in scores[: len(item.right)]),
    }
