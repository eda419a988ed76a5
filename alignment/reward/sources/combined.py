"""The weighted sum of several sources, each of which is logged by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignment.reward.sources.protocol import Episodes, RewardSource, Scores


class CombinedSource:
    """total = sum of weight * component. A source of weight 0 is scored and logged, and does not count."""

    def __init__(self, sources: Mapping[str, tuple[float, RewardSource]], name: str = "total") -> None:
        self.name, self.sources = name, sources

    def score(self, episodes: Episodes) -> Scores:
        parts = [(weight, source.score(episodes)) for weight, source in self.sources.values()]
        return combine(parts, [len(ids) for ids in episodes.completion_ids])


def combine(parts: list[tuple[float, Scores]], lengths: list[int]) -> Scores:
    """The weighted sum of scores of the same episodes, whose completions have `lengths` tokens. Sums are in float64."""
    total_B, rest_B = (torch.zeros(len(lengths), dtype=torch.float64) for _ in range(2))
    components: dict[str, Tensor] = {}
    extras: dict[str, Tensor] = {}
    for weight, scores in parts:
        total_B += weight * scores.total_B.double()
        rest_B += weight * scores.last_token_B.double()
        components.update(scores.components)
        extras.update(scores.extras)
    weighted = [(weight, scores.token_rewards) for weight, scores in parts if scores.token_rewards is not None]
    token_rewards = _sum_tokens(weighted, lengths) if weighted else None
    return Scores(total_B.float(), components, token_rewards, extras, rest_B.float())


def _sum_tokens(weighted: list[tuple[float, list[Tensor]]], lengths: list[int]) -> list[Tensor]:
    """The weighted sums (T_i,) of token rewards."""
    sums = [torch.zeros(length, dtype=torch.float64) for length in lengths]
    for weight, token_rewards in weighted:
        for total_T, rewards_T in zip(sums, token_rewards, strict=True):
            total_T += weight * rewards_T.double()
    return [total_T.float() for total_T in sums]
