"""What a machine with a GPU needs of the runtime and of the lifecycle's server, with CUDA pretended."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

import launch.processes
from launch import stage_process
from launch.runtime import Runtime


@pytest.mark.parametrize(("device", "found"), [("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_gpu_has_its_number(monkeypatch, device, found):
    """accelerate leaves it out for a single process, and torch.cuda.set_device refuses a device without one."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    runtime = Runtime(SimpleNamespace(device=torch.device(device)), "fp32")
    assert runtime.device == torch.device(found)


@pytest.mark.parametrize("spoiled", [True, False])
@pytest.mark.parametrize("gpus", [True, False])
def test_a_stage_whose_fork_cannot_use_the_gpus_starts_anew(monkeypatch, spoiled, gpus):
    """CUDA that was started in the server cannot be used in its forks: "Cannot re-initialize CUDA in forked subprocess"."""
    started = []
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: spoiled)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(launch.processes, "die_with_parent", lambda: None)
    monkeypatch.setattr(os, "execv", lambda *words: started.append(words) or sys.exit(0))
    monkeypatch.setattr("launch.cli.run_command", lambda words: started.append("here"))
    monkeypatch.setenv("SAID", "before")
    with pytest.raises(SystemExit):
        stage_process._run_in_child(["doctor"], {"SAID": "to the stage"})
    assert os.environ["SAID"] == "to the stage"
    anew = (sys.executable, [sys.executable, "-P", "-m", "launch.cli", "doctor"])
    assert started == [anew if spoiled and gpus else "here"]
