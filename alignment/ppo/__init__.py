"""PPO from human feedback under plain `accelerate launch`: see docs/ppo.md."""

from typing import Any

__all__ = ["STAGE", "PPOConfig"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignment.ppo' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from alignment.ppo.config import PPOConfig
    from launch.stage import Stage, run_of

    globals().update(PPOConfig=PPOConfig, STAGE=Stage("ppo", PPOConfig, run_of("alignment.ppo.stage")))
    return globals()[name]
