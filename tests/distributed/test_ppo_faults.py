"""What else may happen to a job: a rank that is stopped, another number of processes, a torn checkpoint, a full disk."""

import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launch.checkpoint import CheckpointStore, verify_folder
from launch.runtime import start_runtime
from tests.distributed.test_ppo_distributed import words
from tests.forked import ForkedJob, run_forked, run_whole
from tests.kills import Kill, finish, newest_intact, result_of, strike, watch_phases
from tests.support import read_metrics

pytestmark = pytest.mark.distributed
UPDATES = 5


def command(inputs, out, **changes):
    return words(inputs, out, **{"updates": UPDATES, "checkpoint_steps": 1, "epochs": 1, **changes})


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    finish(command(inputs, root / "out", rollouts_ahead=1), root / "out", root / "logs", 1, 0)
    return root / "out"


def test_a_stopped_rank_is_named_and_ends_the_job(inputs, tmp_path):
    """SIGSTOP under ZeRO-2, where process groups know no time-out of their own: the watchdogs end both ranks."""
    limit_s = 6.0
    call = command(inputs, tmp_path / "out", watchdog_minutes=limit_s / 60)
    job = ForkedJob(call, tmp_path / "logs", 2, 2, watch_phases)
    assert job.wait_for(lambda: "update 3" in job.marks(1)), job.say()
    job.signal(signal.SIGSTOP, 1)
    job.ranks[0].join(limit_s + 30)
    assert job.ranks[0].exitcode == 75, job.say()
    assert "no step for" in job.say() and "no sign of life from rank 1" in job.say()
    assert newest_intact(tmp_path / "out") == 2
    job.signal(signal.SIGCONT, 1)  # a launcher would kill it; woken up it ends by itself
    assert job.wait(30)[1] != 0


def sample_slowly(_marks):
    """In a rank: each batch of a rollout takes a second."""
    from alignment.generation.engine import LocalEngine

    original = LocalEngine._generate_batch

    def slow(*words):
        time.sleep(1)
        return original(*words)

    LocalEngine._generate_batch = slow


def test_a_rollout_longer_than_the_watchdogs_limit_is_no_stuck_job(inputs, tmp_path):
    """Three batches of a second each, and a limit of two seconds: each batch shows that the rank works."""
    call = command(inputs, tmp_path / "out", updates=1, forward_batch_size=4, watchdog_minutes=2 / 60)
    run_whole(call, tmp_path / "logs", hook=sample_slowly)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_ddp_resumes_on_another_number_of_processes(inputs, whole, tmp_path, before, after):
    """The same episodes in the same global batches, and the rollout in flight: only the order of sums is another."""
    out, logs = tmp_path / "out", tmp_path / "logs"
    call = command(inputs, out, rollouts_ahead=1)
    assert strike(call, out, logs, Kill(4, "score"), before, 0).kept == 3
    assert finish(call, out, logs, after, 0) == 3
    for mine, theirs in zip(read_metrics(out), read_metrics(whole), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5, rel=1e-5)
    ours, others = load_file(out / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.allclose(ours[name], others[name], atol=1e-5) for name in others)


def test_deepspeed_says_why_it_cannot(inputs, tmp_path):
    out, logs = tmp_path / "out", tmp_path / "logs"
    call = command(inputs, out, batch_size=12)
    assert strike(call, out, logs, Kill(3, "score"), 2, 1).kept == 2
    for world, zero_stage, reason in (
        (3, 1, "saved by 2 processes under DeepSpeed, this job has 3"),
        (2, 2, "saved under ZeRO stage 1, this job runs stage 2"),
    ):
        job = ForkedJob(call, logs, world, zero_stage)
        assert job.wait() == [2] * world, job.say()
        assert reason in job.say()


def test_a_torn_checkpoint_is_named_and_the_one_before_used(inputs, whole, tmp_path):
    out, logs = tmp_path / "out", tmp_path / "logs"
    call = command(inputs, out, rollouts_ahead=1)
    assert strike(call, out, logs, Kill(5, "update"), 1, 0).kept == 4
    os.truncate(out / "checkpoints" / "step-00000004" / "state.safetensors", 1000)
    assert finish(call, out, logs, 1, 0) == 3
    said = (logs / "0001-rank0.log").read_text()
    assert "checkpoint passed over" in said and "step-00000004: state.safetensors has 1000 bytes instead of" in said
    assert result_of(out) == result_of(whole)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_flipped_bits_in_the_shards_of_two_ranks_are_found(inputs, tmp_path, capsys, zero_stage):
    out = tmp_path / "out"
    finish(command(inputs, out), out, tmp_path / "logs", 2, zero_stage)
    rng, newest = random.Random(0), out / "checkpoints" / f"step-{UPDATES:08d}"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert sum("rank" in path.name or path.suffix == ".pt" for path in files) >= 2
    runtime, hit = start_runtime("fp32"), set()
    for _ in range(300):
        path = rng.choice(files)
        position, bit = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
        with open(path, "r+b", buffering=0) as stream:
            stream.seek(position)
            good = stream.read(1)
            stream.seek(position)
            stream.write(bytes([good[0] ^ bit]))
            found = CheckpointStore(newest.parent, runtime).latest()
            stream.seek(position)
            stream.write(good)
        assert found.step == UPDATES - 1, (path.name, position, bit)
        assert newest.name in capsys.readouterr().err
        hit.add(path)
    assert hit == set(files)
    assert CheckpointStore(newest.parent, runtime).latest().step == UPDATES


# ------------------------------------------------------------------------------------------ a full disk


@contextlib.contextmanager
def small_disk(folder: Path, size: int):
    """A file system of `size` bytes at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(path: Path, disk: Path, update: int, phase: str, left: int) -> None:
    """In a rank: when a phase begins, a file takes all but `left` bytes of the disk."""
    watch_phases(path)
    from tests import kills

    kills.OBSERVERS.append(functools.partial(fill_at, disk, (phase, update), left))


def fill_at(disk: Path, moment: tuple[str, int], left: int, phase: str, update: int) -> None:
    if (phase, update) == moment and not (disk / "filler").exists():
        free = shutil.disk_usage(disk).free
        with contextlib.suppress(OSError), open(disk / "filler", "wb") as stream:
            stream.write(b"x" * max(0, free - left))


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


MOMENTS = [("score", 0), ("log", 0), ("make", 0), ("write", 20_000), ("write", 130_000), ("seal", 0), ("renamed", 0)]


@pytest.mark.skipif(not can_mount(), reason="needs root, to mount a small file system")
def test_a_disk_that_fills_up_at_any_write(inputs, whole, tmp_path):
    """The job goes on, or ends with a sentence; checkpoints before stay whole; with space again it ends as if nothing was."""
    ended = []
    for number, (phase, left) in enumerate(MOMENTS):
        disk, logs = tmp_path / f"disk{number}", tmp_path / f"logs{number}"
        with small_disk(disk, 24 * 2**20):
            out = disk / "out"
            call = command(inputs, out, rollouts_ahead=1, dump_rollouts="jsonl")
            job = ForkedJob(call, logs, hook=functools.partial(fill_disk, disk=disk, update=3, phase=phase, left=left))
            code = job.wait()[0]
            kept = newest_intact(out)
            assert code in (0, 2), (phase, job.say())
            assert "Traceback" not in job.say(), (phase, job.say())
            assert kept >= 2, (phase, job.say())
            assert "the disk is full" in job.say() or "No space left on device" in job.say(), (phase, job.say())
            ended.append(code)
            (disk / "filler").unlink()
            run_forked(call, logs)
            assert result_of(out) == result_of(whole), phase
            for path in (out / "checkpoints").glob("step-*"):
                verify_folder(path)
    assert ended
