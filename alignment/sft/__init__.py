"""The stage `sft`: supervised fine-tuning on prompts and completions. See docs/sft.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignment.lora.config import LoraOptions
from alignment.trl_stage.config import TrainerConfig
from launch.stage import Job, Stage


@dataclass(kw_only=True)
class SFTConfig(TrainerConfig):
    """Supervised fine-tuning: the loss is on completions alone, and their end is learned.

    Rows of `data` have `prompt` and `completion` (text or messages), or `messages`.
    """

    lora: LoraOptions | None = None
    """Train an adapter of `model` (lora.rank, lora.alpha, lora.targets); all weights when not given."""


def run(config: SFTConfig, job: Job) -> dict[str, Any]:
    """Train and save the model; trl is imported when it is needed."""
    from alignment.sft.stage import run

    return run(config, job)


STAGE = Stage("sft", SFTConfig, run)
__all__ = ["STAGE", "SFTConfig"]
