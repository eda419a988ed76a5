"""The config group `lora` of the stages that train adapters. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from launch.ranges import Positive, PositiveInt


@dataclass(kw_only=True)
class LoraOptions:
    """Train low-rank adapters of a frozen base (Hu et al. 2021) instead of all weights. Without dropout.

    Dropout is 0: PPO's ratio is 1 at the first step, and a pair of answers is compared, only without it.
    """

    rank: PositiveInt = 16
    """Rank of the adapters; at least that of an adapter that is trained on."""
    alpha: Positive | None = None
    """An adapter adds alpha / rank * B A to its layer's weight; 2 * rank when not given."""
    targets: list[str] = field(default_factory=list)
    """Linear layers that get adapters, by the last part of their name (q_proj, v_proj); all but the head when empty."""

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank
