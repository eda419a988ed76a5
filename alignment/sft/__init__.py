"""The stage `sft`: supervised fine-tuning on prompts and completions. See docs/sft.md."""

from alignment.sft.config import SFTConfig
from launch.stage import Stage, run_of

STAGE = Stage("sft", SFTConfig, run_of("alignment.sft.stage"))
__all__ = ["STAGE", "SFTConfig"]
