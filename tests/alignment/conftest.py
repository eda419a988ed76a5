"""Fixtures of the PPO tests."""

from tests.alignment.graph_support import recorders
from tests.alignment.ppo_support import folders, make, runtime

__all__ = ["folders", "make", "recorders", "runtime"]
