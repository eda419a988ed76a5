"""Several reward models as one source: what they agree on counts, what they disagree on is logged.

A policy finds the errors of a single reward model; members that were trained from different seeds or data seldom err
alike (Coste et al. 2023, "Reward model ensembles help mitigate overoptimization"; Eisenstein et al. 2023, "Helping or
herding?"). Shapes: M members, B episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from alignment.reward.sources.model import ModelSource
from alignment.reward.sources.protocol import Episodes, Scores, single

Aggregate = Literal["mean", "min", "mean-std"]


def aggregate_members(rewards_MB: Tensor, aggregate: Aggregate, std_weight: float = 1.0) -> Tensor:
    """One reward (B,) from those of the members: their mean, their minimum, or mean - std_weight * disagreement."""
    if aggregate == "min":
        return rewards_MB.amin(0)
    mean_B = rewards_MB.mean(0)
    return mean_B if aggregate == "mean" else mean_B - std_weight * disagreement(rewards_MB)


def disagreement(rewards_MB: Tensor) -> Tensor:
    """The standard deviation (B,) over the members, divided by M: they are all there are, not a sample."""
    return rewards_MB.std(0, unbiased=False)


class EnsembleSource:
    """Reward models of any tokenizers, aggregated row by row."""

    def __init__(
        self, name: str, members: Sequence[ModelSource], aggregate: Aggregate = "mean", std_weight: float = 1.0
    ) -> None:
        self.name, self.members, self.aggregate, self.std_weight = name, members, aggregate, std_weight

    def score(self, episodes: Episodes) -> Scores:
        rewards_MB = torch.stack([member.rewards(episodes) for member in self.members])
        logged = {f"member_{i}": rewards_B for i, rewards_B in enumerate(rewards_MB, 1)}
        total_B = aggregate_members(rewards_MB, self.aggregate, self.std_weight)
        return single(self.name, total_B, disagreement=disagreement(rewards_MB), **logged)
