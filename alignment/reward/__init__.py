"""The stage `reward`: a Bradley-Terry reward model from preferences. See docs/reward.md."""

from alignment.reward.config import RewardConfig
from launch.stage import Stage, run_of

STAGE = Stage("reward", RewardConfig, run_of("alignment.reward.stage"))
__all__ = ["STAGE", "RewardConfig"]
