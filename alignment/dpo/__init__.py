"""The stage `dpo`: direct preference optimisation, the baseline that PPO is compared with. See docs/dpo.md."""

from typing import Any

__all__ = ["STAGE", "DPOConfig"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignment.dpo' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from alignment.dpo.config import DPOConfig
    from launch.stage import Stage, run_of

    globals().update(DPOConfig=DPOConfig, STAGE=Stage("dpo", DPOConfig, run_of("alignment.dpo.stage")))
    return globals()[name]
