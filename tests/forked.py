"""Jobs of one or more real processes, forked from a server that has imported the libraries once.

`accelerate launch` imports them anew for each rank (8 s); a kill costs as much again. Here a rank takes a second. The ranks
are what the launcher starts: the same environment, `python -m alignment.ppo`, one process each.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any
from unittest.mock import patch

from launch.entry import run_module
from tests.fork_python import forked_servers
from tests.libraries import LIBRARIES
from tests.support import ROOT, free_port

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.forked", *LIBRARIES])


def start_server() -> None:
    """Fork the server from this process, which has imported the libraries, in place of a new Python that imports them."""
    resource_tracker.ensure_running()
    with forked_servers():
        forkserver.ensure_running()
    multiprocessing.set_start_method(None, force=True)  # that chose one, and blind_watermark wants to be the first


Hook = Callable[[Path], Any]
"""Called in a rank before its command, with the file that it may write to."""


def launcher_environment(rank: int, world: int, port: int, zero_stage: int) -> dict[str, str]:
    """What `accelerate launch` tells a rank: nothing for a plain single process."""
    if world == 1 and zero_stage == 0:
        return {}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    told = {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**_told_to_all(zero_stage), **{name: str(value) for name, value in told.items()}}


@functools.cache
def _told_to_all(zero_stage: int) -> dict[str, str]:
    """What accelerate's launcher puts into the environment of all ranks, by its own code and our file of this stage.

    The accumulation steps that it is given count for nothing: stages have their own.
    """
    from accelerate.commands import launch

    file = ROOT / "launch" / "accelerate" / (f"zero{zero_stage}.yaml" if zero_stage else "cpu_ddp2.yaml")
    words = ["--config_file", str(file), "--num_processes", "2", "--gradient_accumulation_steps", "3", "-m", "nothing"]
    told: dict[str, str] = {}
    with patch("torch.distributed.run.run", lambda _: told.update(os.environ)):
        launch.launch_command(launch.launch_command_parser().parse_args(words))
    return {name: value for name, value in told.items() if name.startswith("ACCELERATE_")}


def _become_rank(module: str, words: list[str], told: dict[str, str], log: Path, hook: Hook | None) -> None:
    for name in [n for n in os.environ if n.startswith(("ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))]:
        del os.environ[name]
    os.environ.update(told)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = [module, *words]
    if hook is not None:
        hook(log.with_suffix(".marks"))
    run_module(*module.split(":"))


class ForkedJob:
    """The ranks of one job. `say()` is what a rank has said so far, `codes` how they ended.

    `module` is a stage (`alignment.ppo`), or `module:function` of the words.
    """

    def __init__(
        self,
        words: Sequence[Any],
        folder: Path,
        world: int = 1,
        zero_stage: int = 0,
        hook: Hook | None = None,
        module: str = "alignment.ppo",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*-rank0.log")))
        self.logs = [folder / f"{number:04d}-rank{rank}.log" for rank in range(world)]
        self.codes: list[int] = []
        port, texts = free_port(), [str(word) for word in words]
        self.ranks = [
            context.Process(
                target=_become_rank,
                args=(module, texts, launcher_environment(rank, world, port, zero_stage), self.logs[rank], hook),
            )
            for rank in range(world)
        ]
        for log, rank in zip(self.logs, self.ranks, strict=True):
            log.touch()
            rank.start()

    def say(self, rank: int = 0) -> str:
        return self.logs[rank].read_text()

    def marks(self, rank: int = 0) -> list[str]:
        """The lines that the hook of a rank wrote."""
        path = self.logs[rank].with_suffix(".marks")
        return path.read_text().splitlines() if path.exists() else []

    def alive(self) -> bool:
        return any(rank.is_alive() for rank in self.ranks)

    def signal(self, number: int, rank: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.ranks[rank].pid, number)

    def kill(self, ranks: Sequence[int] | None = None) -> None:
        """SIGKILL to some ranks, or to all. Not to one that has ended: its number may be another process's by now."""
        for rank in range(len(self.ranks)) if ranks is None else ranks:
            if self.ranks[rank].is_alive():
                self.signal(signal.SIGKILL, rank)

    def wait(self, patience_s: float = 300) -> list[int]:
        """The exit codes (negative: the signal) of all ranks, once they have ended; those that have not are killed."""
        deadline = time.monotonic() + patience_s
        for rank in self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        late = [i for i, rank in enumerate(self.ranks) if rank.exitcode is None]
        self.kill()
        for rank in self.ranks:
            rank.join()
        assert not late, f"ranks {late} did not end by themselves: {[self.say(i)[-2000:] for i in late]}"
        self.codes = [rank.exitcode for rank in self.ranks]
        return self.codes

    def wait_for(self, seen: Callable[[], bool], patience_s: float = 100) -> bool:
        """Wait until `seen()` or the end of a rank; returns whether it was seen."""
        deadline = time.monotonic() + patience_s
        while not seen():
            if time.monotonic() > deadline or not all(rank.is_alive() for rank in self.ranks):
                return seen()
            time.sleep(0.005)
        return True


def run_forked(words: Sequence[Any], folder: Path, world: int = 1, zero_stage: int = 0, **more: Any) -> ForkedJob:
    """A job that is run to its end."""
    job = ForkedJob(words, folder, world, zero_stage, **more)
    job.wait()
    return job


def run_whole(words: Sequence[Any], folder: Path, world: int = 1, zero_stage: int = 0, **more: Any) -> ForkedJob:
    """A job that must end well."""
    job = run_forked(words, folder, world, zero_stage, **more)
    assert job.codes == [0] * world, [job.say(rank)[-3000:] for rank in range(world)]
    return job
