"""What PPO carries from one rollout to the next, apart from the models: the KL weight and the scale of the scores.

Both are given numbers of the GLOBAL batch, so that they are the same on every rank, and both belong in the checkpoint:
`state_dict` is a flat dict of plain numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

ROUNDING = 1e-6
"""Relative error that equal scores may have from their sums in float32."""


@dataclass
class KLController:
    """The KL coefficient: fixed, or adapted so that the sequence KL stays near `target` (Ziegler et al. 2019, eq. 3).

    error = clip(KL / target - 1, -0.2, 0.2);  coef <- coef (1 + error * episodes / horizon). KL is the mean over the
    global batch of the KL summed over each sequence, and `episodes` counts the global batch.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, sequence_kl: float, episodes: int) -> None:
        """Move the coefficient after a rollout; a fixed controller does not move."""
        if self.target is not None:
            error = min(max(sequence_kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * episodes / self.horizon

    def state_dict(self) -> dict[str, float]:
        """What moves; target and horizon are the config's."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]


@dataclass
class RewardNormaliser:
    """Mean and standard deviation of the scores of all episodes seen, in float64.

    Batches are merged exactly (Chan, Golub and LeVeque 1979, the pairwise form of Welford's update): how the episodes
    were cut into batches changes nothing but the last bits, and early episodes never lose their weight.
    """

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0
    """Sum of squared deviations from the mean."""

    @property
    def std(self) -> float:
        """Population standard deviation of the scores seen; 0 before the first."""
        return math.sqrt(self.deviations / self.count) if self.count else 0.0

    def update(self, scores_B: Tensor) -> None:
        """Take in the scores of a global batch."""
        scores_B = scores_B.detach().double()
        mean = float(scores_B.mean())
        self.merge(RewardNormaliser(len(scores_B), mean, float((scores_B - mean).square().sum())))

    def merge(self, other: RewardNormaliser) -> None:
        """Take in all that another one has seen."""
        count = self.count + other.count
        if count == 0:
            return
        difference = other.mean - self.mean
        self.mean += difference * other.count / count
        self.deviations += other.deviations + difference**2 * self.count * other.count / count
        self.count = count

    def normalise(self, scores_B: Tensor, shift_mean: bool) -> Tensor:
        """Scores over their deviation, of the same shape and type, with the mean taken off first if `shift_mean`.

        While all scores seen were equal, up to the rounding of float32 sums, there is no scale, and they are not divided.
        """
        scale = self.std if self.std > 1e-8 + ROUNDING * abs(self.mean) else 1.0
        shifted_B = scores_B.double() - (self.mean if shift_mean else 0.0)
        return (shifted_B / scale).to(scores_B.dtype)

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "deviations": self.deviations}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.deviations = int(state["count"]), state["mean"], state["deviations"]
