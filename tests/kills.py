"""SIGKILL to ranks of a PPO job at chosen moments, and what must hold after it. For the tests and `benchmarks/soak.py`."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.checkpoint import verify_folder
from launch.files import sha256_file
from tests.forked import ForkedJob
from tests.support import read_metrics

PHASES = ("rollout", "score", "update", "log", "make", "write", "hash", "seal", "sealed", "rename", "renamed", "rotate")
"""Of an update, and then of its checkpoint; `sealed` to `renamed` lie between the manifest and the end of the commit."""


OBSERVERS: list[Any] = []
"""Called with each phase and the update, in the rank."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL `delay_s` after `phase` of update `update` began on a rank, to that rank or to all of them."""

    update: int
    phase: str
    delay_s: float = 0.0
    rank: int = 0
    all_ranks: bool = False


def watch_phases(path: Path, kill: Kill | None = None) -> None:
    """In a rank: write a line to `path` as each phase begins and as a save is acknowledged; kill this process at `kill`."""
    from alignment.ppo.trainer import PPOTrainer
    from launch import checkpoint

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    now = {"update": 0}
    mine = kill is not None and int(os.environ.get("RANK", "0")) == kill.rank

    def mark(phase: str) -> None:
        os.write(descriptor, f"{phase} {now['update']}\n".encode())
        for observer in OBSERVERS:
            observer(phase, now["update"])
        if mine and (phase, now["update"]) == (kill.phase, kill.update):
            if kill.delay_s == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Thread(target=die, args=(kill.delay_s,), daemon=True).start()

    def die(delay_s: float) -> None:
        time.sleep(delay_s)
        os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str, phase: str, after: str | None = None) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def marked(*words: Any, **named: Any) -> Any:
            if phase == "rollout":
                now["update"] = words[0].update_number + 1
            mark(phase)
            result = original(*words, **named)
            if after and result is not False:
                mark(after)
            return result

        setattr(owner, name, marked)

    before(PPOTrainer, "next_rollout", "rollout")
    for name in ("score", "update", "log"):
        before(PPOTrainer, name, name)
    before(PPOTrainer, "save", "save", "saved")
    before(checkpoint.CheckpointStore, "_make_aside", "make", "write")
    before(checkpoint.CheckpointStore, "_hash_share", "hash")
    before(checkpoint, "seal_folder", "seal", "sealed")
    before(os, "rename", "rename", "renamed")
    before(checkpoint.CheckpointStore, "_rotate", "rotate")


@dataclass
class Blow:
    """What a kill did."""

    phase: str
    """The last phase that the rank had begun."""
    acknowledged: int
    """The last step whose save had returned on some rank."""
    kept: int
    """The newest step that verifies."""


def strike(
    words: Sequence[Any], out: Path, logs: Path, kill: Kill, world: int, zero_stage: int, after_s: float | None = None
) -> Blow | None:
    """Start (or resume) the job and kill it; None when it was over before. `after_s`: so long after its first phase instead."""
    job = ForkedJob(words, logs, world, zero_stage, functools.partial(watch_phases, kill=None if after_s else kill))
    if after_s:
        job.wait_for(lambda: bool(job.marks(kill.rank)))
        job.ranks[kill.rank].join(after_s)
        job.kill(None if kill.all_ranks else [kill.rank])
    job.ranks[kill.rank].join(120)
    ended = job.ranks[kill.rank].exitcode is not None
    if kill.all_ranks or not ended:
        job.kill()
    codes = job.wait(60)  # the others notice by themselves
    assert ended, (kill, job.say(kill.rank)[-3000:])
    if 0 in codes:
        # it was over before: a rank ends well when the main one has written what the job made, and not before
        assert (out / "provenance.json").exists(), (kill, codes)
        return None
    assert codes[kill.rank] == -signal.SIGKILL, (codes, job.say(kill.rank)[-3000:])
    marks = [mark for rank in range(world) for mark in job.marks(rank)]
    steps = [int(mark.split()[1]) for mark in marks if mark.startswith("saved ")]
    before = [int(word) for word in job.say().partition("resuming after step ")[2].split()[:1]]
    return Blow(
        (job.marks(kill.rank) or ["start 0"])[-1].split()[0], max(steps + before, default=0), newest_intact(out)
    )


def newest_intact(out: Path) -> int:
    """The newest checkpoint that verifies; 0 for none. One that does not is an error: kills leave whole ones, or none."""
    steps = sorted(int(path.name[5:]) for path in (out / "checkpoints").glob("step-*"))
    for step in steps:
        verify_folder(out / "checkpoints" / f"step-{step:08d}")
    return max(steps, default=0)


def finish(words: Sequence[Any], out: Path, logs: Path, world: int, zero_stage: int) -> int:
    """Resume a job and run it to its end; returns the step that it went on from."""
    job = ForkedJob(words, logs, world, zero_stage, watch_phases)
    assert job.wait(300) == [0] * world, job.say()[-3000:]
    return int((job.say().partition("resuming after step ")[2].split() or ["0"])[0])


def result_of(out: Path) -> tuple[dict[str, str], list[dict[str, float]]]:
    """Hashes of the weights of policy and critic, and the metrics of all updates."""
    names = ("model.safetensors", "critic/model.safetensors")
    return {name: sha256_file(out / name) for name in names}, read_metrics(out)
