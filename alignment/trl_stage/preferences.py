"""Preferences for the stages that train on them."""

from __future__ import annotations

from alignment.trl_stage.config import TrainerConfig
from data import Preference, load_preferences, split_by_hash


def load_preference_split(config: TrainerConfig) -> tuple[list[Preference], list[Preference]]:
    """Training and held-out preferences: as the config names them, or by a hash of the prompt."""
    preferences = load_preferences(config.data)
    if config.eval_data:
        return preferences, load_preferences(config.eval_data)
    shares = {"train": 1 - config.eval_fraction, "eval": config.eval_fraction}
    parts = split_by_hash(preferences, "prompt", shares, config.split_salt)
    return parts["train"], parts["eval"]
