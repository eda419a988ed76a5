"""The config of the stage `sft`."""

from __future__ import annotations

from dataclasses import dataclass

from alignment.lora.config import LoraOptions
from alignment.trl_stage.config import TrainerConfig


@dataclass(kw_only=True)
class SFTConfig(TrainerConfig):
    """Supervised fine-tuning: the loss is on completions alone, and their end is learned.

    Rows of `data` have `prompt` and `completion` (text or messages), or `messages`.
    """

    lora: LoraOptions | None = None
    """Train an adapter of `model` (lora.rank, lora.alpha, lora.targets); all weights when not given."""
