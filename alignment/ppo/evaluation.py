"""Evaluation during training: the policy on held-out prompts, before a judge that it is not trained against.

Every evaluation draws its samples with the same random numbers, so that curves and differences are paired by prompt. It
takes none of training's random numbers and changes nothing of the trainer. Rewards of the source that the policy is
trained against are called proxy, those of the judge gold (Gao et al. 2023). Shapes: n held-out prompts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.ppo.options import EvaluationOptions
from alignment.ppo.rollout import Prompt
from alignment.prompts import fitting_prompts, load_prompt_rows
from alignment.reward.sources.config import SourceConfig
from alignment.reward.sources.protocol import RewardSource
from data.completions import Completion
from data.records import normalise, plain_text
from evaluation.language.quality import distinct, is_degenerate, repetition
from evaluation.preferences.accuracy import Answer, duel_outcomes
from evaluation.preferences.length import length_controlled_win_rate
from evaluation.safety.lexicon import Lexicon, count_terms, load_lexicon
from evaluation.safety.personal_data import find_personal_data
from evaluation.safety.refusal import is_refusal
from evaluation.statistics import Estimate, mean_of, paired_difference, proportion, repeated, win_rate
from launch.errors import UserError
from launch.files import sha256_text

PURPOSE = "ppo-evaluation"
"""Of the random numbers of the samples."""
Row = dict[str, Any]
"""One line of evaluations.jsonl: `step`, and each number with its interval as NAME, NAME_ci_low and NAME_ci_high."""


@dataclass
class HeldOut:
    """What a policy is measured on: prompts that it is not trained on, and a judge that it is not trained against."""

    rows: Sequence[Prompt | str]
    """Rows with `prompt_ids`, or texts; the trainer makes rows of them."""
    gold: RewardSource | None = None
    """Without a judge the training reward decides who wins."""
    lexicon: Lexicon | None = None


def load_held_out(
    options: EvaluationOptions,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    training: Sequence[Prompt],
    build: Callable[[Mapping[str, SourceConfig]], RewardSource],
    say: Callable[[str], object],
) -> HeldOut:
    """Held-out prompts and judge of a config; `build` makes a source. UserError when no prompt is left to measure on."""
    assert options.prompts is not None
    rows, too_long = fitting_prompts(tokenizer, load_prompt_rows(options.prompts), max_tokens)
    known = {normalise(plain_text(row["prompt"])) for row in training}
    unseen = [row for row in rows if normalise(plain_text(row["prompt"])) not in known]
    if not unseen:
        raise UserError(
            f"evaluation.prompts: all {len(rows)} prompts of {options.prompts} are trained on, too; "
            "give prompts that are held out, such as another split (`::eval`)"
        )
    if len(unseen) < len(rows):
        say(f"{len(rows) - len(unseen)} of {len(rows)} held-out prompts are trained on, too, and are left out")
    kept = sorted(unseen, key=lambda row: sha256_text(str(row["prompt"])))[: options.limit]
    say(f"{len(kept)} held-out prompts; {too_long} too long, {len(unseen) - len(kept)} above the limit")
    lexicon = load_lexicon(options.lexicon) if options.lexicon else None
    return HeldOut(kept, build(options.judge) if options.judge else None, lexicon)


# ---------------------------------------------------------------------------------------------- one evaluation


@dataclass(frozen=True)
class Sample:
    """The policy's completion of one held-out prompt (`completion.id` is its number), and what was measured of it."""

    completion: Completion
    proxy: float
    gold: float | None
    k1: float
    """Sequence KL to the reference, nats, by Schulman's estimators k1 and k3."""
    k3: float


@dataclass
class Record:
    """What later evaluations are compared with: one completion and its rewards for each held-out prompt."""

    update: int
    completions: list[str]
    finished: list[bool]
    proxy: list[float]
    gold: list[float] | None

    @property
    def answers(self) -> list[Answer]:
        """What the judge reads of each completion."""
        return list(zip(self.completions, self.finished, strict=True))

    @property
    def judged(self) -> list[float]:
        """The rewards that decide who wins."""
        return self.proxy if self.gold is None else self.gold


@dataclass(frozen=True)
class Evaluation:
    """The policy after `update` updates, on the held-out prompts."""

    update: int
    samples: list[Sample]
    row: Row

    @property
    def record(self) -> Record:
        return record_of(self.update, self.samples)


def record_of(update: int, samples: Sequence[Sample]) -> Record:
    """What is kept of an evaluation's samples."""
    gold = [sample.gold for sample in samples if sample.gold is not None]
    texts, finished = [s.completion.text for s in samples], [s.completion.finished for s in samples]
    return Record(update, texts, finished, [s.proxy for s in samples], gold or None)


@dataclass
class History:
    """The evaluations of a run so far: what a checkpoint holds of them."""

    rows: list[Row] = field(default_factory=list)
    start: Record | None = None
    """Of the policy before the first update: whom the win rate is against."""
    peak: Record | None = None
    """Of the evaluation with the highest gold reward."""

    def evaluate(self, update: int, samples: list[Sample], lexicon: Lexicon | None = None) -> Evaluation:
        """The evaluation of these samples, compared with the start and the peak; nothing is kept of it."""
        own = record_of(update, samples)
        start = own if update == 0 else self.start
        estimates = measure(samples, start, self.peak, lexicon)
        row: Row = {"step": update, "n": len(samples), "judge": "proxy" if own.gold is None else "gold"}
        for name, found in estimates.items():
            if found is not None:
                row[name] = found.value
            if found is not None and found.low is not None:
                row |= {f"{name}_ci_low": found.low, f"{name}_ci_high": found.high}
        row["sqrt_kl"] = math.sqrt(max(0.0, row["kl_k1"]))
        return Evaluation(update, samples, row)

    def add(self, evaluation: Evaluation) -> None:
        """Keep the row, and what later evaluations are compared with."""
        record = evaluation.record
        self.rows.append(evaluation.row)
        if evaluation.update == 0:
            self.start = record
        if record.gold and (self.peak is None or np.mean(record.gold) > np.mean(self.peak.judged)):
            self.peak = record

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])
        self.start, self.peak = (Record(**state[name]) if state[name] else None for name in ("start", "peak"))


def measure(
    samples: Sequence[Sample], start: Record | None, peak: Record | None, lexicon: Lexicon | None
) -> dict[str, Estimate | None]:
    """Everything that is measured of an evaluation, by name; samples of one prompt count as one unit. Pure.

    `start` and `peak` belong to the same prompts in the same order. None: undefined on these samples.
    """
    completions = [sample.completion for sample in samples]
    prompts = [completion.prompt_text for completion in completions]
    groups = repeated(prompts)
    own = record_of(0, samples)
    found: dict[str, Estimate | None] = {"proxy_reward": mean_of(own.proxy, groups)}
    if own.gold is not None:
        found["gold_reward"] = mean_of(own.gold, groups)
    found["kl_k1"] = mean_of([sample.k1 for sample in samples], groups)
    found["kl_k3"] = mean_of([sample.k3 for sample in samples], groups)
    if start is not None:
        found |= _against_start(own, start, groups)
    if peak is not None and own.gold is not None and peak.gold is not None:
        found["proxy_reward_since_peak"] = paired_difference(own.proxy, peak.proxy, clusters=groups).estimate
        found["gold_reward_since_peak"] = paired_difference(own.gold, peak.gold, clusters=groups).estimate
    return {**found, **_quality(completions, groups), **_safety(completions, groups, lexicon)}


def _against_start(own: Record, start: Record, groups: Sequence[str] | None) -> dict[str, Estimate | None]:
    """Gains in reward over the start policy, and the win rate against it; ties count half."""
    gains = {"proxy_reward_gain": (own.proxy, start.proxy), "gold_reward_gain": (own.gold, start.gold)}
    won = duel_outcomes(own.judged, start.judged, own.answers, start.answers)
    longer = [len(ours) - len(theirs) for ours, theirs in zip(own.completions, start.completions, strict=True)]
    return {
        **{
            name: paired_difference(ours, theirs, clusters=groups).estimate
            for name, (ours, theirs) in gains.items()
            if ours is not None and theirs is not None
        },
        "win_rate": win_rate(won, groups),
        "win_rate_length_controlled": length_controlled_win_rate(won, longer, groups),
    }


def _quality(completions: Sequence[Completion], groups: Sequence[str] | None) -> dict[str, Estimate | None]:
    words = [completion.text.split() for completion in completions]
    return {
        "mean_length": mean_of([len(completion.completion_ids) for completion in completions], groups),
        "missing_eos_rate": proportion([not completion.finished for completion in completions], groups),
        "repetition_4": mean_of([repetition(each) for each in words], groups),
        "distinct_1": distinct(words, 1, groups=groups),
        "distinct_2": distinct(words, 2, groups=groups),
    }


def _safety(
    completions: Sequence[Completion], groups: Sequence[str] | None, lexicon: Lexicon | None
) -> dict[str, Estimate | None]:
    """The rates that need no model; what each detector finds is said in docs/safety.md."""
    checks: dict[str, Callable[[str], object]] = {
        "degenerate_rate": is_degenerate,
        "refusal_rate": is_refusal,
        "personal_data_rate": find_personal_data,
    }
    if lexicon is not None:
        checks["lexicon_rate"] = lambda text: count_terms(text, lexicon)
    return {name: proportion([bool(check(c.text)) for c in completions], groups) for name, check in checks.items()}


def sample_rows(evaluation: Evaluation, start: Record | None) -> Iterator[dict[str, Any]]:
    """The rows of a file of samples: each prompt with the completions of this policy and of the start policy."""
    for place, sample in enumerate(evaluation.samples):
        own = sample.completion
        row = {
            "step": evaluation.update,
            "id": own.id,
            "prompt": own.prompt_text,
            "completion": own.text,
            "start_completion": start.completions[place] if start else None,
            "reference": own.reference,
            "tokens": len(own.completion_ids),
            "finished": own.finished,
            **{name: getattr(sample, name) for name in ("proxy", "gold", "k1", "k3")},
        }
        yield {name: value for name, value in row.items() if value is not None}
