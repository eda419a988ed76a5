"""PPO from human feedback under plain `accelerate launch`: see docs/ppo.md."""

from alignment.ppo.config import PPOConfig
from launch.stage import Stage, run_of

STAGE = Stage("ppo", PPOConfig, run_of("alignment.ppo.stage"))
__all__ = ["STAGE", "PPOConfig"]
