"""The stage `sft`: supervised fine-tuning on prompts and completions. See docs/sft.md."""

from typing import Any

__all__ = ["STAGE", "SFTConfig"]
HEADLINE = (
    "trained on {rows} rows, {steps} steps",
    "held out: loss {eval_loss} nats per token, perplexity {eval_perplexity} ({eval_rows} rows)",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignment.sft' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from alignment.sft.config import SFTConfig
    from launch.stage import LazyRun, Stage

    run = LazyRun("alignment.sft.stage")
    globals().update(SFTConfig=SFTConfig, STAGE=Stage("sft", SFTConfig, run, headline=HEADLINE))
    return globals()[name]
