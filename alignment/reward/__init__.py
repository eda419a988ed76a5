"""The stage `reward`: a Bradley-Terry reward model from preferences. See docs/reward.md."""

from typing import Any

__all__ = ["STAGE", "RewardConfig"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignment.reward' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from alignment.reward.config import RewardConfig
    from launch.stage import Stage, run_of

    globals().update(RewardConfig=RewardConfig, STAGE=Stage("reward", RewardConfig, run_of("alignment.reward.stage")))
    return globals()[name]
