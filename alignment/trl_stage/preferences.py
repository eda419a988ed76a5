"""What the stages that train on preferences share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.trl_stage.config import TrainerConfig, hold_out
from data import Preference, load_preferences


@dataclass(kw_only=True)
class PreferenceConfig(TrainerConfig):
    """Training on preference pairs."""

    eval_fraction: float = 0.1
    """Share of `data` that is held out, by a hash of the prompt: no held-out prompt is trained on."""
    invalid: Literal["error", "drop"] = "error"
    """What to do with faulty rows (an empty answer, chosen equal to rejected): stop and name the first, or leave them out."""


def load_preference_split(config: PreferenceConfig) -> tuple[list[Preference], list[Preference]]:
    """Training and held-out preferences: as the config names them, or by a hash of the prompt."""
    preferences = load_preferences(config.data, config.invalid)
    if config.eval_data:
        return preferences, load_preferences(config.eval_data, config.invalid)
    return hold_out(preferences, config)
