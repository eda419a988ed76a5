"""Fixtures of the PPO tests."""

from tests.alignment.ppo_support import folders, make, runtime

__all__ = ["folders", "make", "runtime"]
