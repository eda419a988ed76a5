"""PPO from human feedback under plain `accelerate launch`: see docs/ppo.md."""

from alignment.ppo.config import PPOConfig
from alignment.ppo.stage import STAGE
from alignment.ppo.trainer import PPOTrainer

__all__ = ["STAGE", "PPOConfig", "PPOTrainer"]
