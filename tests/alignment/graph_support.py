"""Recorders of operations in place of CUDA graphs, for what PPO captures."""

import pytest
import torch

from alignment.ppo import graphs as module
from tests.op_recorder import OpRecorder


@pytest.fixture
def recorders(monkeypatch):
    """Recorders of operations, one for each trunk and precision; `recorders.room` is what they have."""

    class Made(list):
        room = 2**40

    made = Made()
    monkeypatch.setattr(module, "spare_bytes", lambda device: made.room)
    monkeypatch.setattr(module, "can_capture", lambda device: True)
    monkeypatch.setattr(module, "recorder_for", lambda device: made.append(OpRecorder(made.room)) or made[-1])
    return made


def graphs_of(trunk):
    return module._graphs[trunk]


def passes_of(trunk, dtype=torch.float32):
    return graphs_of(trunk).by_type[dtype].passes


class Refuses(OpRecorder):
    def capture_all(self, steps):
        raise RuntimeError("CUDA error: operation not permitted\nCompile with TORCH_USE_CUDA_DSA")
