"""The sets that a model's likelihoods answer, by name: how each is read and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluation.safety import bbq, bias_sets, truthfulness
from evaluation.safety.choices import Item, Score, Scores
from evaluation.schema import Metric


@dataclass(frozen=True)
class LikelihoodSet:
    """How to read a set's items from a source, and its metrics from their scores."""

    load: Callable[[str], list[Item]]
    measure: Callable[[Sequence[Item], Scores], list[Metric]]
    right: Callable[[Item, Sequence[Score]], bool] | None = None
    """Whether an item is answered rightly, as `measure` counts it; None for sets without right answers."""


LIKELIHOOD_SETS = {
    "crows_pairs": LikelihoodSet(bias_sets.load_crows_pairs, bias_sets.measure_crows_pairs),
    "winogender": LikelihoodSet(bias_sets.load_winogender, bias_sets.measure_winogender, bias_sets.winogender_right),
    "stereoset": LikelihoodSet(bias_sets.load_stereoset, bias_sets.measure_stereoset),
    "bbq": LikelihoodSet(bbq.load_bbq, bbq.measure_bbq, bbq.answered_rightly),
    "truthfulqa": LikelihoodSet(
        truthfulness.load_truthfulqa, truthfulness.measure_truthfulqa, truthfulness.truthfully_answered
    ),
    "suggested_answer": LikelihoodSet(
        truthfulness.load_suggested_answer, truthfulness.measure_suggested_answer, truthfulness.suggestion_resisted
    ),
    "sycophancy": LikelihoodSet(truthfulness.load_sycophancy, truthfulness.measure_sycophancy),
}
