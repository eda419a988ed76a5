"""The life of a language model: pretraining, SFT, reward models, PPO and DPO.

Names are resolved when they are first used: `from alignment import RewardModel` imports no trainer.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "RewardModel": "alignment.reward.model",
    "PPOConfig": "alignment.ppo.config",
    "PPOTrainer": "alignment.ppo.trainer",
    "Roles": "alignment.ppo.roles",
    "load_roles": "alignment.ppo.models",
    "Episodes": "alignment.reward.sources.protocol",
    "Scores": "alignment.reward.sources.protocol",
    "SourceConfig": "alignment.reward.sources.config",
    "build_source": "alignment.reward.sources.build",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'alignment' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
