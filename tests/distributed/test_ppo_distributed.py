"""PPO on one process, on two under DDP, and under DeepSpeed ZeRO 1, 2 and 3: the same trajectory, and resumable."""

import dataclasses
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from launch.errors import UserError
from launch.files import sha256_file
from tests.forked import ForkedJob, run_forked, run_whole
from tests.support import environment, launch_command, read_metrics

pytestmark = pytest.mark.distributed
ZERO_STAGES = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}
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
def whole(inputs, tmp_path_factory):
    """whole(critic, mode) -> the folder of the run on two processes, or on one without a mode."""
    root = tmp_path_factory.mktemp("whole")

    def run(critic, mode=None):
        out = root / critic / str(mode)
        if not out.exists():
            world, stage = (2, ZERO_STAGES[mode]) if mode else (1, 0)
            run_whole(words(inputs, out, critic_from=critic), root / "logs", world, stage)
        return out

    return run


def largest_difference(a, b):
    """Over all metrics of all updates, of numbers above 1 (ratios, norms) as a share of them; the explained variance is a
    quotient of small numbers, so of it a tenth of that."""
    rows = list(zip(read_metrics(a), read_metrics(b), strict=True))
    assert len(rows) == UPDATES

    def scale(name, value):
        return max(1.0, (10 if name == "critic/explained_variance" else 1) * abs(value))

    return max(abs(x[name] - y[name]) / scale(name, x[name]) for x, y in rows for name in x)


@pytest.mark.parametrize("mode", ZERO_STAGES)
@pytest.mark.parametrize("critic", ["reward", "trunk"])
def test_two_processes_follow_the_trajectory_of_one(whole, mode, critic):
    """Minibatches of 5 over 2 ranks: one rank passes an empty micro-batch, and nothing changes."""
    alone, out = whole(critic), whole(critic, mode)
    assert largest_difference(alone, out) < 1e-5
    provenance = json.loads((out / "provenance.json").read_text())
    assert (provenance["world"], provenance["zero_stage"]) == (2, ZERO_STAGES[mode])
    for folder, kind in ((".", AutoModelForCausalLM), ("critic", AutoModelForSequenceClassification)):
        ours, theirs = kind.from_pretrained(out / folder), kind.from_pretrained(alone / folder)
        ids = torch.tensor([[3, 4, 5, 6]])
        with torch.no_grad():
            assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-3)


def note_forward_passes(marks):
    """In a rank: a line for each forward pass of policy and critic, of what it is for and what it reads."""
    from alignment.ppo.learner import Learner

    plain = Learner.forward

    def forward(learner, batch):
        with open(marks, "a") as stream:
            stream.write(f"{'training' if torch.is_grad_enabled() else 'scoring'} {batch.tokens_bS.tolist()}\n")
        return plain(learner, batch)

    Learner.forward = forward


@pytest.mark.parametrize("mode", ZERO_STAGES)
def test_the_first_ratio_of_two_processes_is_exactly_one(inputs, tmp_path, mode):
    """With one optimizer step an update: scoring passes are shared out and cut as those of the step are."""
    settings = dict(minibatches=1, epochs=1, updates=3, precision="bf16", learning_rate=1e-2)
    job = ForkedJob(
        words(inputs, tmp_path / "out", **settings), tmp_path / "logs", 2, ZERO_STAGES[mode], note_forward_passes
    )
    assert job.wait(120) == [0, 0], [job.say(rank)[-3000:] for rank in (0, 1)]
    for rank in (0, 1):
        marks = [line.split(" ", 1) for line in job.marks(rank)]
        scored, trained = ([read for kind, read in marks if kind == kinds] for kinds in ("scoring", "training"))
        assert scored == trained and len(scored) > 3
    rows = read_metrics(tmp_path / "out")
    assert [(row["policy/ratio_max"], row["policy/approx_kl"]) for row in rows] == [(1, 0)] * 3
    assert rows[0]["kl/k1"] == rows[0]["kl/k3"] == 0 < rows[2]["kl/k3"]


def score_twice(marks):
    """In a rank: what is scored is scored again, as a user may want it."""
    from alignment.ppo.trainer import PPOTrainer

    plain = PPOTrainer.score

    def score(trainer, rollout):
        whole = plain(trainer, rollout)
        numbers = {name: getattr(whole, name) for name in ("logprobs_BT", "ref_logprobs_BT", "values_BT", "scores_B")}
        whole.logprobs_BT = None
        again = plain(trainer, whole)
        same = all(torch.equal(getattr(again, name), values) for name, values in numbers.items())
        try:
            plain(trainer, dataclasses.replace(again, scores_B=None))
        except UserError as error:
            Path(marks).write_text(f"{same} {len(again)} {error}\n")
        return again

    PPOTrainer.score = score


def test_a_rollout_can_be_scored_again_on_two_processes(inputs, tmp_path):
    """It holds the episodes of both by then: they are not gathered once more, and no source is asked for them all by each."""
    job = ForkedJob(words(inputs, tmp_path / "out", updates=1), tmp_path / "logs", 2, 0, score_twice)
    assert job.wait(120) == [0, 0], [job.say(rank)[-3000:] for rank in (0, 1)]
    for rank in (0, 1):
        assert job.marks(rank)[0].startswith("True 10 score: the rollout holds the episodes of all processes")


def test_the_ptx_ratio_of_two_processes_is_that_of_one(inputs, tmp_path):
    """PTX rows over 2 ranks in unequal micro-batches; the rest of the update is that of one process, too."""
    data = tmp_path / "pairs.jsonl"
    texts = [("the of", "and to in"), ("a is", "that it"), ("the", "in"), ("of a is", "it was on"), ("to", "the a in")]
    data.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in texts))
    settings = dict(ptx_data=data, ptx_coef=0.5, ptx_batch_size=5, updates=2, epochs=1)
    run_whole(words(inputs, tmp_path / "alone", **settings), tmp_path / "logs")
    alone = read_metrics(tmp_path / "alone")
    assert all(row["ptx/grad_norm_ratio"] > 0.01 for row in alone)
    for mode, stage in ZERO_STAGES.items():
        run_whole(words(inputs, tmp_path / mode, **settings), tmp_path / "logs", 2, stage)
        for ours, theirs in zip(read_metrics(tmp_path / mode), alone, strict=True):
            assert ours["ptx/grad_norm_ratio"] == pytest.approx(theirs["ptx/grad_norm_ratio"], rel=1e-4), mode
            for key in ("ptx/loss", "train/grad_norm", "kl/k1", "policy/entropy", "policy/ratio_max"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-5), (mode, key)


def test_the_policy_wakes_with_a_fresh_optimizer_under_every_stage(inputs, tmp_path):
    """After the critic's warm-up; with Adam's count of idle steps the updates after it would be larger."""
    settings = dict(critic_warmup=2, updates=4, epochs=1, critic_from="trunk")
    runs = {"alone": (1, 0), "zero1": (2, 1), "zero2": (2, 2), "zero3": (2, 3)}
    rows = {}
    for name, (world, stage) in runs.items():
        run_whole(words(inputs, tmp_path / name, **settings), tmp_path / "logs", world, stage)
        rows[name] = read_metrics(tmp_path / name)
    for name in runs:
        for ours, theirs in zip(rows[name], rows["alone"], strict=True):
            for key in ("kl/k1", "policy/approx_kl", "policy/entropy", "reward/score", "policy/ratio_max"):
                assert ours[key] == pytest.approx(theirs[key], abs=1e-5), (name, key)


def test_the_launcher_killed_and_its_job_resumed_to_the_bit(inputs, whole, tmp_path):
    """SIGKILL to `accelerate launch` itself: its ranks follow by themselves. (Ranks are killed in test_ppo_kills.py.)"""
    killed = tmp_path / "killed"
    flags = ["--use_deepspeed", "--zero_stage", "2"]
    command = launch_command("alignment.ppo", words(inputs, killed, checkpoint_steps=1), 2, flags)
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (killed / "checkpoints" / "step-00000003").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "provenance.json").exists()
    again = run_whole(words(inputs, killed, checkpoint_steps=1), tmp_path / "logs", 2, 2)
    assert "resuming after step" in again.say()
    for name in ("model.safetensors", "critic/model.safetensors"):
        assert sha256_file(killed / name) == sha256_file(whole("reward", "zero2") / name), name
    assert read_metrics(killed) == read_metrics(whole("reward", "zero2"))


def test_zero_refuses_what_it_cannot_resume(inputs, tmp_path):
    out = tmp_path / "out"
    call = words(inputs, out, checkpoint_steps=1, updates=2)
    run_whole(call, tmp_path / "logs", 2, 1)
    (out / "provenance.json").unlink()
    shutil.rmtree(out / "checkpoints" / "step-00000002")
    job = run_forked(call, tmp_path / "logs")
    assert job.codes == [2]
    assert "saved under ZeRO stage 1, this job runs stage 0" in job.say()


def test_batch_that_does_not_divide(inputs, tmp_path):
    job = run_forked(words(inputs, tmp_path / "o", batch_size=9, minibatches=1), tmp_path / "logs", 2)
    assert 0 not in job.codes
    assert "batch_size: 9 is not a multiple of 2 processes" in job.say()


def test_b10_weights_of_a_zero3_run_are_whole(inputs, tmp_path):
    out = tmp_path / "out"
    run_whole(words(inputs, out, updates=1, learning_rate=0.0), tmp_path / "logs", 2, 3)
    before, after = load_file(inputs[0] / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("mode", "critic"), [("zero2", "reward"), ("zero3", "reward"), ("zero3", "trunk")])
def test_the_reference_has_the_arithmetic_of_the_policy_in_bf16(inputs, tmp_path, mode, critic):
    """A policy that does not move stays at KL 0 exactly: rounding apart would be a reward of its own.

    A head on the trunk is no weight of the policy's, but lies in one buffer with them under ZeRO-3: in bf16, too.
    """
    out = tmp_path / mode
    changes = dict(precision="bf16", learning_rate=0, critic_learning_rate=1e-3, updates=2, critic_from=critic)
    run_whole(words(inputs, out, **changes), tmp_path / "logs", 2, ZERO_STAGES[mode])
    rows = read_metrics(out)
    assert [row["kl/k1"] for row in rows] == [0, 0]
    assert max(row["policy/approx_kl"] for row in rows) < 1e-4  # bf16 rounds otherwise in another batch shape
    assert json.loads((out / "provenance.json").read_text())["precision"] == "bf16"
