"""The config of the stage `reward`."""

from __future__ import annotations

from dataclasses import dataclass

from alignment.lora.config import LoraOptions
from alignment.trl_stage.preferences import PreferenceConfig
from launch.config import artefact
from launch.ranges import NotNegative, Positive


@dataclass(kw_only=True)
class RewardConfig(PreferenceConfig):
    """A reward model: pairwise Bradley-Terry on preferences, started from the SFT model.

    Rows of `data` have `prompt`, `chosen` and `rejected`, and may have `strength` and `tie`.
    """

    lora: LoraOptions | None = None
    """Train an adapter of `model` and a head (lora.rank, lora.alpha, lora.targets); all weights when not given."""
    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    margin_per_strength: NotNegative = 0.0
    """Margin of a pair in the loss, for each unit of its `strength`."""
    centering: NotNegative = 0.01
    """Weight of the penalty on the mean reward of a pair (Eisenstein et al. 2023); without it normalising disturbs the ranking."""
    normalise: bool = True
    """Give the rewards of the calibration texts mean 0 and standard deviation 1, in the weights."""
    normalise_on: str | None = artefact(None)
    """Completions of the SFT model to calibrate on (completions.jsonl or its folder); the training pairs' texts when not given."""
