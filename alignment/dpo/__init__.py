"""The stage `dpo`: direct preference optimisation, the baseline that PPO is compared with. See docs/dpo.md."""

from typing import Any

__all__ = ["STAGE", "DPOConfig"]
HEADLINE = (
    "trained on {pairs} pairs, {steps} steps",
    "held out: the chosen answer wins {eval_accuracy} of {eval_pairs} pairs, mean margin {eval_margin}, loss {eval_loss}",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignment.dpo' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from alignment.dpo.config import DPOConfig
    from launch.stage import LazyRun, Stage

    run = LazyRun("alignment.dpo.stage")
    globals().update(DPOConfig=DPOConfig, STAGE=Stage("dpo", DPOConfig, run, headline=HEADLINE))
    return globals()[name]
