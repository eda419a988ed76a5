"""A TRL stage that is killed or stopped goes on to the same weights, to the bit; damaged checkpoints are passed over."""

import shutil

import pytest

from alignment.dpo import STAGE as DPO
from alignment.reward import STAGE as REWARD
from alignment.sft import STAGE as SFT
from launch.errors import UserError
from launch.stage import Job, Stopped
from tests.alignment.trl_support import run, save_pairs, save_preferences, weights_sha
from tests.support import read_metrics, save_policy

EVERY = ["--checkpoint_steps", 4]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "model": save_policy(folder / "model", tie_word_embeddings=True),
        SFT.name: save_pairs(folder / "pairs.jsonl"),
        REWARD.name: save_preferences(folder / "preferences.jsonl"),
        DPO.name: folder / "preferences.jsonl",
    }


def words(inputs, stage):
    """Two epochs of 6 steps (48 rows less the held-out ones, in batches of 8 of two micro-batches)."""
    return ["--model", inputs["model"], "--data", inputs[stage.name], "--batch_size", 8, "--micro_batch_size", 4,
            "--epochs", 2, "--learning_rate", 1e-3, *EVERY]  # fmt: skip


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """Uninterrupted runs by stage, made when first asked for."""
    made = {}

    def get(stage):
        if stage.name not in made:
            made[stage.name] = run(stage, tmp_path_factory.mktemp(stage.name) / "whole", *words(inputs, stage))
        return made[stage.name]

    return get


class Killed(BaseException):
    pass


def interrupt(monkeypatch, stage, folder, inputs, step):
    """Run until the end of `step`, then die without a word."""
    beat = Job.beat

    def die(job, now):
        if now == step:
            raise Killed
        beat(job, now)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "beat", die)
        with pytest.raises(Killed):
            run(stage, folder, *words(inputs, stage))
    assert not (folder / "provenance.json").exists()


def rows_of(folder):
    return [{k: v for k, v in row.items()} for row in read_metrics(folder)]


@pytest.mark.parametrize(("stage", "step"), [(SFT, 10), (REWARD, 7), (DPO, 9)], ids=lambda v: getattr(v, "name", v))
def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(stage, step, inputs, whole, monkeypatch, tmp_path):
    reference = whole(stage)
    interrupt(monkeypatch, stage, tmp_path / "run", inputs, step)
    resumed = run(stage, tmp_path / "run", *words(inputs, stage))
    assert weights_sha(resumed) == weights_sha(reference)
    assert rows_of(resumed) == rows_of(reference)
    steps = [row["step"] for row in rows_of(resumed) if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))


def test_stopped_run_saves_and_goes_on(inputs, whole, monkeypatch, tmp_path):
    beat = Job.beat

    def ask_to_stop(job, now):
        job._stop_requested = job._stop_requested or now == 5
        beat(job, now)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "beat", ask_to_stop)
        with pytest.raises(Stopped):
            run(SFT, tmp_path / "run", *words(inputs, SFT))
    assert (tmp_path / "run" / "checkpoints" / "step-00000005" / "MANIFEST.json").exists()
    assert weights_sha(run(SFT, tmp_path / "run", *words(inputs, SFT))) == weights_sha(whole(SFT))


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_damaged_newest_checkpoint_is_named_and_the_one_before_resumed(inputs, whole, monkeypatch, tmp_path, capsys):
    interrupt(monkeypatch, SFT, tmp_path / "run", inputs, 10)
    flip_byte(tmp_path / "run" / "checkpoints" / "step-00000008" / "optimizer.pt")
    capsys.readouterr()
    resumed = run(SFT, tmp_path / "run", *words(inputs, SFT))
    said = capsys.readouterr().err
    assert "step-00000008: optimizer.pt has changed" in said
    assert "resuming after step 4" in said
    assert weights_sha(resumed) == weights_sha(whole(SFT))


def test_no_intact_checkpoint_is_an_error_and_never_a_new_start(inputs, monkeypatch, tmp_path):
    interrupt(monkeypatch, SFT, tmp_path / "run", inputs, 10)
    for step in (4, 8):
        (tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "MANIFEST.json").unlink()
    with pytest.raises(UserError, match="no checkpoint is intact"):
        run(SFT, tmp_path / "run", *words(inputs, SFT))


def test_killed_after_training_repeats_only_what_came_after(inputs, whole, monkeypatch, tmp_path):
    folder = shutil.copytree(whole(REWARD), tmp_path / "run")
    (folder / "provenance.json").unlink()
    before = weights_sha(folder)
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("torch.optim.AdamW.step", lambda *_, **__: pytest.fail("a step was made again"))
    assert weights_sha(run(REWARD, folder, *words(inputs, REWARD))) == before
