"""Evaluation, best policy and monitors of PPO on two processes: as on one, and alike on both."""

import json
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from launch.files import sha256_file
from tests.distributed.test_ppo_distributed import ZERO_STAGES, words
from tests.forked import ForkedJob, run_forked, run_whole
from tests.support import read_metrics, save_policy, save_prompts, save_reward

pytestmark = pytest.mark.distributed
WATCH = ("--evaluation.every", "2", "--evaluation.limit", "7", "--evaluation.kl_budget", "50")
"""Seven prompts over two ranks: three and four."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    held_out = save_prompts(root / "held_out.jsonl", seed=5)
    gold = save_reward(root / "gold", seed=3)
    trained = save_policy(root / "policy"), save_reward(root / "reward"), save_prompts(root / "prompts.jsonl")
    return trained, ["--evaluation.prompts", held_out, "--evaluation.gold", gold]


def command(inputs, out, *more, **changes):
    trained, evaluation = inputs
    return [*words(trained, out, updates=4, **changes), *WATCH, *evaluation, *more]


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "ppo"
    run_whole(command(inputs, out), out.with_name("logs"))
    return out


def evaluations(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", ["ddp", "zero3"])
def test_evaluations_on_two_processes_are_those_on_one(inputs, alone, tmp_path, mode):
    out = tmp_path / mode
    run_whole(command(inputs, out), tmp_path / "logs", 2, ZERO_STAGES[mode])
    ours, theirs = evaluations(out), evaluations(alone)
    assert [row["step"] for row in ours] == [0, 2, 4] and ours[0]["n"] == 7
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys() and {"gold_reward_ci_low", "win_rate", "kl_k1_ci_high"} <= a.keys()
        for name, value in b.items():
            assert a[name] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-3)), name
    chosen = json.loads((out / "best" / "evaluation.json").read_text())
    assert chosen["step"] == json.loads((alone / "best" / "evaluation.json").read_text())["step"]
    summary = json.loads((out / "provenance.json").read_text())["summary"]
    assert (
        summary["best/step"] == chosen["step"]
        and f"| best/step | {chosen['step']} |" in (out / "README.md").read_text()
    )
    for folder, kind in (("best", AutoModelForCausalLM), ("best/critic", AutoModelForSequenceClassification)):
        mine, other = kind.from_pretrained(out / folder), kind.from_pretrained(alone / folder)
        ids = torch.tensor([[3, 4, 5, 6]])
        with torch.no_grad():
            assert torch.allclose(mine(ids).logits, other(ids).logits, atol=1e-3), folder
    rows = [json.loads(line) for line in (out / "evaluation_samples.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(i) for i in range(7)] and {row["step"] for row in rows} == {4}


def test_killed_between_evaluations_and_resumed(inputs, alone, tmp_path):
    """The start's samples come from the checkpoint, evaluations.jsonl is cut back to it, best/ is the same in the end."""
    out = tmp_path / "killed"
    call = command(inputs, out, "--checkpoint_steps", "3")
    job = ForkedJob(call, tmp_path / "logs")
    assert job.wait_for((out / "checkpoints" / "step-00000003").exists)
    job.kill()
    assert job.wait() == [-signal.SIGKILL]
    assert not (out / "provenance.json").exists()
    with open(out / "evaluations.jsonl", "a") as stream:  # as a run that had come further would have left it
        stream.write(json.dumps({"step": 4, "n": 0}) + "\n")
    assert "resuming after step 3" in run_whole(call, tmp_path / "logs").say()
    assert read_metrics(out) == read_metrics(alone) and evaluations(out) == evaluations(alone)
    for name in ("model.safetensors", "best/model.safetensors", "best/samples.jsonl", "best/evaluation.json"):
        assert sha256_file(out / name) == sha256_file(alone / name), name


def test_both_ranks_roll_back_and_then_stop(inputs, tmp_path):
    """Under ZeRO-2: a KL that is out of bounds from the second update on, one roll-back to the start, then the end."""
    out = tmp_path / "out"
    monitors = ["--monitors.kl.action", "rollback", "--monitors.kl.threshold", "0.001", "--monitors.rollbacks", "1"]
    job = run_forked(command(inputs, out, *monitors, learning_rate=1e-2), tmp_path / "logs", 2, 2)
    assert 0 not in job.codes and "Traceback" not in job.say(0) + job.say(1)
    assert "rolled back to update 0, learning rates times 0.5" in job.say()
    assert "after 1 roll-backs the run stops with a checkpoint of update" in job.say()
    assert "rank 1: update" in job.say(1)
    rows = [row for row in read_metrics(out) if row["step"] > 0]
    again = next(i for i in range(1, len(rows)) if rows[i]["step"] == 1)
    assert rows[again]["reward/score"] == rows[0]["reward/score"]  # the weights of the start are back on both ranks
    assert rows[again]["train/lr"] == rows[0]["train/lr"] / 2
    assert evaluations(out)[0]["step"] == 0 and not (out / "provenance.json").exists()
