"""Pretraining: a modern GPT block in a Hugging Face architecture, from raw text. See docs/pretrain.md."""

from alignment.pretrain.config import PretrainConfig
from launch.stage import Stage, run_of

STAGE = Stage("pretrain", PretrainConfig, run_of("alignment.pretrain.stage"))
__all__ = ["STAGE", "PretrainConfig"]
