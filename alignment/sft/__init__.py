"""The stage `sft`: supervised fine-tuning on prompts and completions. See docs/sft.md."""

from typing import Any

__all__ = ["STAGE", "SFTConfig"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignment.sft' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from alignment.sft.config import SFTConfig
    from launch.stage import Stage, run_of

    globals().update(SFTConfig=SFTConfig, STAGE=Stage("sft", SFTConfig, run_of("alignment.sft.stage")))
    return globals()[name]
