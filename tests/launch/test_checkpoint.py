"""The checkpoint protocol: kills, flipped bits, full disks, rotation."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from launch import checkpoint
from launch.checkpoint import CheckpointStore, pack_tree, seal_folder, unpack_tree, verify_folder
from launch.errors import UserError
from launch.runtime import start_runtime
from tests.forked import ForkedJob, run_whole


@pytest.fixture(scope="module")
def runtime():
    return start_runtime("fp32")


def tree(step=0):
    weight = torch.arange(12.0).reshape(3, 4) + step
    optimizer = {
        "state": {0: {"step": torch.tensor(float(step)), "exp_avg": weight * 2}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}],
    }
    return {
        "model": {"w": weight, "tied": weight, "empty": torch.zeros(0), "half": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": optimizer,
        "note": None,
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b and type(a) is type(b)


def test_no_tensor_takes_the_name_of_another():
    with pytest.raises(ValueError, match="two tensors of a checkpoint would be called /a/b"):
        pack_tree({"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}})


def test_trees_come_back_with_their_types():
    tensors, skeleton = pack_tree(tree())
    assert equal(unpack_tree(tensors, skeleton), tree())
    assert len(tensors) == 5  # the tied weight is stored once
    with pytest.raises(TypeError, match="at /bad"):
        pack_tree({"bad": object()})


def test_save_resume_and_rotation(tmp_path, runtime):
    store = CheckpointStore(tmp_path / "c", runtime, keep=2)
    assert store.latest() is None
    for step in (1, 2, 3):
        assert store.save(step, tree(step))
    assert store.steps() == [2, 3]
    newest = CheckpointStore(tmp_path / "c", runtime).latest()
    assert newest.step == 3
    assert equal(newest.state(), tree(3))


def test_the_one_resumed_from_is_kept(tmp_path, runtime):
    CheckpointStore(tmp_path, runtime).save(1, tree())
    store = CheckpointStore(tmp_path, runtime, keep=2)
    assert store.latest().step == 1
    for step in (2, 3, 4):
        store.save(step, tree())
    assert store.steps() == [1, 3, 4]


def test_a_pinned_one_outlives_rotation_and_a_run_may_return_to_it(tmp_path, runtime, capsys):
    store = CheckpointStore(tmp_path / "c", runtime, keep=2)
    for step in range(1, 8):
        store.pinned = 3 if step > 3 else None
        assert store.save(step, tree(step))
    assert store.steps() == [3, 6, 7]
    (tmp_path / "c" / "step-00000006" / "MANIFEST.json").unlink()
    assert store.latest(lambda step: step < 7).step == 3
    assert "step-00000006: it has no manifest" in capsys.readouterr().err
    assert store.latest(lambda step: step < 3) is None
    store.discard_after(3)
    assert store.steps() == [3] and store.latest().step == 3
    assert store.save(4, tree(4)) and store.steps() == [3, 4]


def test_every_flipped_bit_is_found_and_the_one_before_is_used(tmp_path, runtime, capsys):
    store = CheckpointStore(tmp_path, runtime)
    store.save(1, tree(1))
    store.save(2, tree(2))
    rng = random.Random(0)
    files = [p for p in (tmp_path / "step-00000002").iterdir()]
    for _ in range(60):
        path = rng.choice(files)
        good = path.read_bytes()
        position = rng.randrange(len(good))
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(bad))
        found = CheckpointStore(tmp_path, runtime).latest()
        assert found.step == 1, (path, position)
        assert "step-00000002" in capsys.readouterr().err
        path.write_bytes(good)
    assert CheckpointStore(tmp_path, runtime).latest().step == 2


@pytest.mark.parametrize("fault", ["truncate", "delete", "extra", "no manifest", "empty manifest"])
def test_other_damage_is_named(tmp_path, runtime, capsys, fault):
    store = CheckpointStore(tmp_path, runtime)
    store.save(1, tree(1))
    store.save(2, tree(2))
    folder = tmp_path / "step-00000002"
    if fault == "truncate":
        os.truncate(folder / "state.safetensors", 10)
    elif fault == "delete":
        (folder / "state.json").unlink()
    elif fault == "extra":
        (folder / "stranger").write_text("x")
    elif fault == "no manifest":
        (folder / "MANIFEST.json").unlink()
    else:
        (folder / "MANIFEST.json").write_text("{}")
    assert CheckpointStore(tmp_path, runtime).latest().step == 1
    words = {
        "truncate": "10 bytes instead of",
        "delete": "state.json is missing",
        "extra": "stranger",
        "no manifest": "not finished",
        "empty manifest": "schema",
    }
    assert words[fault] in capsys.readouterr().err


def test_damaged_ones_that_were_passed_over_do_not_push_out_new_ones(tmp_path, runtime):
    store = CheckpointStore(tmp_path, runtime, keep=3)
    for step in (10, 20, 30):
        store.save(step, tree(step))
    for step in (20, 30):
        os.truncate(tmp_path / f"step-000000{step}" / "state.safetensors", 10)
    store = CheckpointStore(tmp_path, runtime)
    assert store.latest().step == 10
    assert store.steps() == [10, 20, 30]  # nothing is moved before there is something new
    store.save(11, tree(11))
    assert store.steps() == [10, 11]
    assert sorted(p.name for p in tmp_path.glob("damaged-*")) == ["damaged-step-00000020", "damaged-step-00000030"]
    store.save(20, tree(21))  # the number of a damaged one
    found = CheckpointStore(tmp_path, runtime).latest()
    assert found.step == 20 and equal(found.state(), tree(21))


@pytest.mark.distributed
def test_a_full_disk_of_one_rank_hangs_no_other(tmp_path):
    run_whole([tmp_path], tmp_path / "logs", 2, module="tests.launch.full_disk:main")
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    # What rank 1 does not do cannot fail there.
    good = {"good", "good again", "_check_space on 1", "seal_folder on 1"}
    assert {name for name, saved in first.items() if saved is True} == good
    assert len(first) == 11 and first["latest"] == 3
    assert [p.name for p in (tmp_path / "checkpoints").glob(".*")] == []


def test_never_from_scratch_in_silence(tmp_path, runtime):
    CheckpointStore(tmp_path, runtime).save(1, tree())
    os.truncate(tmp_path / "step-00000001" / "state.safetensors", 3)
    with pytest.raises(UserError, match=r"no checkpoint is intact.*delete the folder to start from the beginning"):
        CheckpointStore(tmp_path, runtime).latest()


def test_leftovers_of_a_kill_are_removed_and_never_resumed(tmp_path, runtime):
    (tmp_path / ".tmp-00000009-abc").mkdir(parents=True)
    (tmp_path / ".del-x").mkdir()
    store = CheckpointStore(tmp_path, runtime)
    assert store.latest() is None
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    pass


def kill_at(patch, at):
    """Die at the `at`-th change of the disk that a store makes, in the midst of a removal; returns the count of them."""
    calls = []

    def dying(owner, name):
        action = getattr(owner, name)

        def act(*args, **named):
            calls.append(name)
            if len(calls) == at:
                if name == "rmtree":
                    min(p for p in args[0].rglob("*") if p.is_file()).unlink()
                raise Killed
            return action(*args, **named)

        patch.setattr(owner, name, act)

    changes = (os, "rename"), (shutil, "rmtree"), (checkpoint, "write_atomic"), (checkpoint, "fsync_path")
    for owner, name in changes:
        dying(owner, name)
    return calls


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_kill_while_the_only_checkpoint_is_made_again_loses_nothing(tmp_path, runtime, monkeypatch, spoiled):
    """As after a roll-back: at every change of the disk in `_commit`, and again in the start after that."""
    outcomes, at = set(), 0
    while "whole" not in outcomes:
        at += 1
        folder = tmp_path / str(at)
        store = CheckpointStore(folder, runtime)
        store.save(10, tree(1))
        with monkeypatch.context() as patch:
            calls = kill_at(patch, at)
            try:
                store.save(10, tree(2))
                outcomes.add("whole")
            except Killed:
                pass
        for new in folder.glob(".tmp-*/state.safetensors") if spoiled else ():
            os.truncate(new, 10)
        for again in range(1, 20):
            with monkeypatch.context() as patch, contextlib.suppress(Killed):
                kill_at(patch, again)
                CheckpointStore(folder, runtime)
                break
        found = CheckpointStore(folder, runtime).latest()
        assert found is not None and found.step == 10, (at, calls)
        outcomes.add("new" if equal(found.state(), tree(2)) else "old")
        assert equal(found.state(), tree(2)) or equal(found.state(), tree(1))
        assert [path.name for path in folder.iterdir()] == ["step-00000010"], (at, calls)
        if calls.count("rename") == 2 and not spoiled:  # sealed, and the old one set aside
            assert equal(found.state(), tree(2))
    assert outcomes == {"old", "new", "whole"} and at > 8


def test_a_fault_while_a_checkpoint_is_replaced_brings_it_back(tmp_path, runtime, monkeypatch, capsys):
    store = CheckpointStore(tmp_path, runtime)
    store.save(1, tree(1))
    plain = os.rename

    def rename(source, target):
        if source.name.startswith(".tmp-"):
            raise OSError(28, "No space left on device")
        plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        assert store.save(1, tree(2)) is False
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert equal(store.latest().state(), tree(1))


def test_a_full_disk_leaves_the_old_checkpoint_and_the_job(tmp_path, runtime, capsys):
    store = CheckpointStore(tmp_path, runtime)
    store.save(1, tree(1))

    def fill(folder):
        (folder / "part").write_bytes(b"x" * 100)
        raise OSError(28, "No space left on device")

    assert store.save_with(2, fill) is False
    assert "the disk is full" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert store.latest().step == 1


def test_another_fault_while_writing_is_raised(tmp_path, runtime):
    store = CheckpointStore(tmp_path, runtime)
    with pytest.raises(RuntimeError, match="rank 0: KeyError"):
        store.save_with(1, lambda folder: {}["missing"])
    assert list(tmp_path.iterdir()) == []


def test_sealed_folder_of_another_library(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights").write_bytes(b"123")
    seal_folder(tmp_path, {"step": 4})
    assert verify_folder(tmp_path)["step"] == 4
    (tmp_path / "sub" / "weights").write_bytes(b"124")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        verify_folder(tmp_path)


def save_for_ever(words):
    """Go on from what lies in the folder words[0], and say every step once it is saved."""
    store = CheckpointStore(Path(words[0]), start_runtime("fp32"))
    found = store.latest()
    step = found.step if found else 0
    assert found is None or found.state()["w"].eq(step).all()
    while True:
        step += 1
        assert store.save(step, {"w": torch.full((300_000,), float(step))})
        print(step, flush=True)


@pytest.mark.slow
def test_kill_at_random_moments_loses_no_acknowledged_step(tmp_path, runtime):
    rng = random.Random(1)
    for _ in range(6):
        job = ForkedJob([tmp_path / "saved"], tmp_path / "logs", module="tests.launch.test_checkpoint:save_for_ever")
        saved = lambda: [int(line) for line in job.say().splitlines() if line.isdigit()]  # noqa: E731
        assert job.wait_for(saved), "it could not resume"
        time.sleep(rng.uniform(0.05, 0.6))
        job.kill()
        assert job.wait() == [-signal.SIGKILL], job.say()
        acknowledged = saved()[-1]
        newest = CheckpointStore(tmp_path / "saved", runtime).latest()
        assert newest.step in (acknowledged, acknowledged + 1)
        assert newest.state()["w"].eq(newest.step).all()
