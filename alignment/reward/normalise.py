"""Normalise a reward model in its weights: mean 0 and standard deviation 1 over a set of texts. Pure.

The KL coefficient of PPO means something only on a known scale of rewards (Ziegler et al. 2019; Huang et al. 2024
shift the reward by a bias). A sequence-classification head of a decoder has no bias to hold the shift, so the shift
is made by the change of the head's weights that disturbs the ranking of texts least. Any program that loads the
model then reads normalised rewards.

Shapes: N texts, D features (the hidden state that the head reads), rewards s = H w.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HeadUpdate:
    """A normalised head and what the change did to the rewards of the set."""

    weight_D: Array
    """The new head: (weight + shift) / std."""
    shift_D: Array
    """What was added to the old head to remove the mean."""
    mean: float
    """Mean of the rewards before."""
    std: float
    """Standard deviation of the rewards before."""
    scale: float
    """Bradley-Terry logits in one unit of the new reward: the deviation after the shift, which is divided out."""
    disturbance: float
    """Standard deviation of the shift's own rewards, as a share of `std`: 0 for a pure change of origin."""
    texts: int
    """How many texts it was computed on."""

    def summary(self) -> dict[str, float]:
        """The figures, by the names they have in a stage's summary."""
        return {
            "calibration_texts": self.texts,
            "mean_before": self.mean,
            "std_before": self.std,
            "logit_per_reward": self.scale,
            "disturbance": self.disturbance,
        }


def smallest_shift(features_ND: Array, mean_reward: float) -> Array:
    """The head change dw with dw . mean(h) = -mean_reward whose rewards dw . h vary least, (D,).

    Minimising dw' S dw under that constraint gives dw = -mean_reward S^-1 mu / (mu' S^-1 mu) (Lagrange). S is the
    covariance shrunk by Ledoit and Wolf 2004, so that it can be inverted when N < D, too.
    """
    from sklearn.covariance import ledoit_wolf  # a second, for one call at the end of a training

    mean_D = features_ND.mean(0)
    covariance_DD, _ = ledoit_wolf(features_ND)
    direction_D = np.linalg.solve(covariance_DD, mean_D)
    return -mean_reward * direction_D / (mean_D @ direction_D)


def normalise_head(features_ND: Array, weight_D: Array) -> HeadUpdate:
    """The head that gives these texts rewards of mean 0 and (population) standard deviation 1.

    ValueError when the rewards do not differ: nothing can be scaled then.
    """
    features_ND, weight_D = features_ND.astype(np.float64), weight_D.astype(np.float64)
    rewards_N = features_ND @ weight_D
    mean, std = float(rewards_N.mean()), float(rewards_N.std())
    if not std > 1e-9 * max(1.0, abs(mean)):
        raise ValueError(f"all {len(rewards_N)} texts get the same reward {mean:.4g}")
    shift_D = smallest_shift(features_ND, mean)
    scale = float((features_ND @ (weight_D + shift_D)).std())
    disturbance = float((features_ND @ shift_D).std()) / std
    return HeadUpdate((weight_D + shift_D) / scale, shift_D, mean, std, scale, disturbance, len(rewards_N))
