"""The sets that a model's likelihoods answer, by name: how each is read and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluation.safety import bbq, bias_sets, truthfulness
from evaluation.safety.choices import Item, Scores
from evaluation.schema import Metric


@dataclass(frozen=True)
class LikelihoodSet:
    """How to read a set's items from a source, and its metrics from their scores."""

    load: Callable[[str], list[Item]]
    measure: Callable[[Sequence[Item], Scores], list[Metric]]


LIKELIHOOD_SETS = {
    "crows_pairs": LikelihoodSet(bias_sets.load_crows_pairs, bias_sets.measure_crows_pairs),
    "winogender": LikelihoodSet(bias_sets.load_winogender, bias_sets.measure_winogender),
    "stereoset": LikelihoodSet(bias_sets.load_stereoset, bias_sets.measure_stereoset),
    "bbq": LikelihoodSet(bbq.load_bbq, bbq.measure_bbq),
    "truthfulqa": LikelihoodSet(truthfulness.load_truthfulqa, truthfulness.measure_truthfulqa),
    "suggested_answer": LikelihoodSet(truthfulness.load_suggested_answer, truthfulness.measure_suggested_answer),
    "sycophancy": LikelihoodSet(truthfulness.load_sycophancy, truthfulness.measure_sycophancy),
}
