"""The stage `dpo`: direct preference optimisation, the baseline that PPO is compared with. See docs/dpo.md."""

from alignment.dpo.config import DPOConfig
from launch.stage import Stage, run_of

STAGE = Stage("dpo", DPOConfig, run_of("alignment.dpo.stage"))
__all__ = ["STAGE", "DPOConfig"]
