"""Pretraining: a modern GPT block in a Hugging Face architecture, from raw text. See docs/pretrain.md."""

from alignment.pretrain.config import PretrainConfig
from alignment.pretrain.stage import STAGE
from alignment.pretrain.trainer import Pretrainer

__all__ = ["STAGE", "PretrainConfig", "Pretrainer"]
