"""The stage `reward`: a Bradley-Terry reward model from preferences. See docs/reward.md."""

from typing import Any

__all__ = ["STAGE", "RewardConfig"]
HEADLINE = (
    "trained on {pairs} pairs, {steps} steps",
    "held out: accuracy {accuracy} on {eval_pairs} pairs; choosing the longer answer gets {longest_baseline} (95 % intervals)",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignment.reward' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from alignment.reward.config import RewardConfig
    from launch.stage import LazyRun, Stage

    run = LazyRun("alignment.reward.stage")
    globals().update(RewardConfig=RewardConfig, STAGE=Stage("reward", RewardConfig, run, headline=HEADLINE))
    return globals()[name]
