"""Fixtures of the PPO tests."""

from tests.alignment.graph_support import recorders
from tests.alignment.ppo_support import folders, make, runtime
from tests.alignment.replay_support import both_dumps, common_dump, dumped

__all__ = ["both_dumps", "common_dump", "dumped", "folders", "make", "recorders", "runtime"]
