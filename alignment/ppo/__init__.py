"""PPO from human feedback under plain `accelerate launch`: see docs/ppo.md."""

from __future__ import annotations

from typing import Any

__all__ = ["STAGE"]


def __getattr__(name: str) -> Any:
    if name == "STAGE":  # not imported for the mathematics alone
        from alignment.ppo.stage import STAGE

        return STAGE
    raise AttributeError(f"module 'alignment.ppo' has no attribute '{name}'")
