"""PPO on one process, on two under DDP, and under DeepSpeed ZeRO 1, 2 and 3: the same trajectory, and resumable."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from launch.files import sha256_file
from tests.support import accelerate_launch, alignkit, environment, read_metrics

pytestmark = pytest.mark.distributed
MODES = {
    "ddp": ["--multi_gpu"],
    "zero1": ["--use_deepspeed", "--zero_stage", "1"],
    "zero2": ["--use_deepspeed", "--zero_stage", "2"],
    "zero3": ["--use_deepspeed", "--zero_stage", "3"],
}
UPDATES = 10


def words(inputs, out, **changes):
    policy, reward, prompts = inputs
    settings = dict(
        policy=policy,
        reward=reward,
        prompts=prompts,
        output_dir=out,
        updates=UPDATES,
        batch_size=10,
        minibatches=2,
        epochs=2,
        micro_batch_size=2,
        forward_batch_size=4,
        max_new_tokens=8,
        learning_rate=1e-3,
        precision="fp32",
    )
    return [w for key, value in {**settings, **changes}.items() for w in (f"--{key}", value)]


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "ppo"
    result = alignkit("ppo", *words(inputs, out))
    assert result.returncode == 0, result.stderr
    return out


def largest_difference(a, b):
    """Over all metrics of all updates; the explained variance is a quotient of small numbers, so relative."""
    rows = list(zip(read_metrics(a), read_metrics(b), strict=True))
    assert len(rows) == UPDATES

    def scale(name, value):
        return max(1.0, 10 * abs(value)) if name == "critic/explained_variance" else 1.0

    return max(abs(x[name] - y[name]) / scale(name, x[name]) for x, y in rows for name in x)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_follow_the_trajectory_of_one(inputs, alone, tmp_path, mode):
    """Minibatches of 5 over 2 ranks: one rank passes an empty micro-batch, and nothing changes."""
    out = tmp_path / mode
    result = accelerate_launch("alignment.ppo", words(inputs, out), 2, MODES[mode])
    assert result.returncode == 0, result.stderr[-3000:]
    assert largest_difference(alone, out) < 1e-4
    provenance = json.loads((out / "provenance.json").read_text())
    assert (provenance["world"], provenance["zero_stage"]) == (2, int(mode[-1]) if mode != "ddp" else 0)
    for folder, kind in ((".", AutoModelForCausalLM), ("critic", AutoModelForSequenceClassification)):
        ours, theirs = kind.from_pretrained(out / folder), kind.from_pretrained(alone / folder)
        ids = torch.tensor([[3, 4, 5, 6]])
        with torch.no_grad():
            assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-3)


def kill_tree(process):
    """SIGKILL to the launcher: its ranks must follow by themselves."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("mode", ["alone", "zero2"])
def test_killed_and_resumed_to_the_bit(inputs, alone, tmp_path, mode):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    if mode == "alone":
        whole = alone
        command = [str(Path(sys.executable).parent / "alignkit"), "ppo"]
    else:
        assert accelerate_launch("alignment.ppo", words(inputs, whole), 2, MODES[mode]).returncode == 0
        launcher = str(Path(sys.executable).parent / "accelerate")
        command = [launcher, "launch", *MODES[mode], "--num_processes", "2", "-m", "alignment.ppo"]
    command += [str(w) for w in words(inputs, killed, checkpoint_steps=1)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (killed / "checkpoints" / "step-00000003").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    kill_tree(process)
    assert not (killed / "provenance.json").exists()
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resuming after step" in again.stderr
    for name in ("model.safetensors", "critic/model.safetensors"):
        assert sha256_file(killed / name) == sha256_file(whole / name), name
    assert read_metrics(killed) == read_metrics(whole)


def test_zero_refuses_what_it_cannot_resume(inputs, tmp_path):
    out = tmp_path / "out"
    first = accelerate_launch("alignment.ppo", words(inputs, out, checkpoint_steps=1, updates=2), 2, MODES["zero1"])
    assert first.returncode == 0, first.stderr[-2000:]
    (out / "provenance.json").unlink()
    shutil.rmtree(out / "checkpoints" / "step-00000002")
    result = alignkit("ppo", *words(inputs, out, checkpoint_steps=1, updates=2))
    assert result.returncode == 2
    assert "saved under ZeRO stage 1, this job runs stage 0" in result.stderr


def test_batch_that_does_not_divide(inputs, tmp_path):
    result = accelerate_launch(
        "alignment.ppo", words(inputs, tmp_path / "o", batch_size=9, minibatches=1), 2, MODES["ddp"]
    )
    assert result.returncode != 0
    assert "batch_size: 9 is not a multiple of 2 processes" in result.stderr


def test_weights_of_a_zero3_run_are_whole(inputs, tmp_path):
    out = tmp_path / "out"
    assert (
        accelerate_launch(
            "alignment.ppo", words(inputs, out, updates=1, learning_rate=0.0), 2, MODES["zero3"]
        ).returncode
        == 0
    )
    before, after = load_file(inputs[0] / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_the_reference_has_the_arithmetic_of_the_policy_in_bf16(inputs, tmp_path, mode):
    """A policy that does not move stays at KL 0 exactly: rounding apart would be a reward of its own."""
    out = tmp_path / mode
    changes = dict(precision="bf16", learning_rate=0, critic_learning_rate=1e-3, updates=2)
    result = accelerate_launch("alignment.ppo", words(inputs, out, **changes), 2, MODES[mode])
    assert result.returncode == 0, result.stderr[-3000:]
    rows = read_metrics(out)
    assert [row["kl/k1"] for row in rows] == [0, 0]
    assert max(row["policy/approx_kl"] for row in rows) < 1e-4  # bf16 rounds otherwise in another batch shape
    assert json.loads((out / "provenance.json").read_text())["precision"] == "bf16"
