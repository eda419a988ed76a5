"""Pretraining: a modern GPT block in a Hugging Face architecture, from raw text. See docs/pretrain.md."""

from typing import Any

__all__ = ["STAGE", "PretrainConfig"]
HEADLINE = (
    "held out: {heldout/nats_per_token_with_eos} nats/token (end tokens included), {heldout/bits_per_byte} bits/byte",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignment.pretrain' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from alignment.pretrain.config import PretrainConfig
    from launch.stage import LazyRun, Stage

    run = LazyRun("alignment.pretrain.stage")
    globals().update(PretrainConfig=PretrainConfig, STAGE=Stage("pretrain", PretrainConfig, run, headline=HEADLINE))
    return globals()[name]
