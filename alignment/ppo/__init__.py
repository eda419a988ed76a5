"""PPO from human feedback under plain `accelerate launch`: see docs/ppo.md."""

from typing import Any

__all__ = ["STAGE", "PPOConfig"]
HEADLINE = (
    "after update {updates}: mean reward {reward/score}, KL to the reference {kl/k1} nats (on the last rollout)",
    "best/ holds {best/choice}",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignment.ppo' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from alignment.ppo.config import PPOConfig
    from launch.stage import LazyRun, Stage

    run = LazyRun("alignment.ppo.stage")
    globals().update(PPOConfig=PPOConfig, STAGE=Stage("ppo", PPOConfig, run, headline=HEADLINE))
    return globals()[name]
