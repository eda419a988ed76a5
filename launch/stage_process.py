"""A stage of a lifecycle in a process of its own, forked from a server that has imported the libraries once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from pathlib import Path

from launch.cli import COMMANDS, find_command, find_stage
from launch.config import LIFECYCLE
from launch.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, REASON_FILE
from launch.files import write_json
from launch.plan import PlannedStage
from launch.processes import SERVER_MODULES
from launch.progress import LABEL


def environment_of(stage: PlannedStage, jobs: int) -> dict[str, str]:
    """What its messages call the recipe; where others run beside it, its share of the cores and a name for its lines."""
    if jobs == 1 or stage.alone:
        return {LIFECYCLE: stage.origin, REASON_FILE: str(_reason_file(stage))}
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // jobs))
    return {**environment_of(stage, 1), "OMP_NUM_THREADS": threads, LABEL: stage.name}


def _server(stages: Sequence[PlannedStage]) -> ForkServerContext:
    """Starts processes that share what is imported: what these stages need, which takes longer than some of them.

    Ctrl-C is off in all of them: the lifecycle gets it, and asks them.
    In the server itself it would break the import of torch, that is, the first seconds of every lifecycle. The server inherits
    that the signal is blocked, until it ignores it (fork_server.py); one that comes meanwhile is for the lifecycle.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["launch.fork_server"])
    bodies = {find_stage(s.command).body: None for s in stages if not s.launcher}
    os.environ[SERVER_MODULES] = ",".join(["launch.runtime", *bodies])
    resource_tracker.ensure_running()  # first: it unblocks the signal at its end
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        del os.environ[SERVER_MODULES]
    return context


def _reason_file(stage: PlannedStage) -> Path:
    return stage.folder.parent / ".recipes" / f"{stage.name}.reason"


class RunningStage:
    """A stage in a process of its own. `later`: those that will follow it."""

    def __init__(
        self, stage: PlannedStage, head: str, environment: dict[str, str], later: Sequence[PlannedStage]
    ) -> None:
        print(f"{head}: alignkit {stage.command}", file=sys.stderr, flush=True)
        self.stage, self.head, self.start = stage, head, time.monotonic()
        self.failure = ""
        """Why it failed, in one line."""
        _reason_file(stage).unlink(missing_ok=True)
        words = _launched(stage) if stage.launcher else arguments_of(stage)
        target = _become if stage.launcher else _run_in_child
        self.process = _server([stage, *later]).Process(target=target, args=(words, environment), name=stage.name)
        self.process.start()

    def stop(self) -> None:
        """Ask it to save and to end. Under a launcher its ranks are asked: the launcher would give them half a minute."""
        pid = self.process.pid
        if pid is not None:
            for number in (_children(pid) or [pid]) if self.stage.launcher else [pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)

    def finish(self, stop_code: int) -> int:
        """Wait for its end, record it, say it; its exit code as a shell would give it.

        `stop_code` (0 if it was not asked to stop) is what one that was stopped counts as.
        """
        self.process.join()
        code = self.process.exitcode or 0
        if code == 0:
            write_json(self.stage.folder / ".recipe.json", {"fingerprint": self.stage.fingerprint})
            print(f"{self.head}: done in {time.monotonic() - self.start:.1f} s", file=sys.stderr, flush=True)
        # It may not have listened yet; and a launcher turns the code of its ranks into 1.
        stopped = (EXIT_RESUMABLE, EXIT_INTERRUPTED, -signal.SIGTERM, *([1] if self.stage.launcher else []))
        if stop_code and code in stopped:
            return stop_code
        if code != 0:
            self.failure = f"{self.head}: failed: {self._reason(code)}"
            print(self.failure, file=sys.stderr, flush=True)
        return code if code >= 0 else 128 - code

    def _reason(self, code: int) -> str:
        with contextlib.suppress(OSError):
            return _reason_file(self.stage).read_text(encoding="utf-8")
        what = f"killed by signal {-code}" if code < 0 else f"it ended with code {code}, see above"
        return f"{what}; run the same command again to resume"


def _children(pid: int) -> list[int]:
    """The processes that a process has started (Linux)."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def arguments_of(stage: PlannedStage) -> list[str]:
    """The command line of a stage: its recipe as a file beside the others, `overwrite` since the lifecycle owns the folder."""
    recipe = stage.folder.parent / ".recipes" / f"{stage.name}.yaml"
    write_json(recipe, {**stage.config, "output_dir": str(stage.folder), "overwrite": True})  # JSON is YAML
    return [*stage.command.split(), "--config", str(recipe)]


def _launched(stage: PlannedStage) -> list[str]:
    """A stage on several processes: exactly what a user would type."""
    from launch.processes import find_accelerate

    _, arguments = find_command(arguments_of(stage))
    return [find_accelerate(), "launch", *stage.launcher, "-m", COMMANDS[stage.command][0], *arguments]


def _run_in_child(words: list[str], environment: dict[str, str]) -> None:
    from launch.cli import run_command
    from launch.entry import guarded
    from launch.processes import die_with_parent

    die_with_parent()
    os.environ.update(environment)
    if _has_lost_gpus():
        os.execv(sys.executable, [sys.executable, "-P", "-m", "launch.cli", *words])  # -P: not of this folder
    if "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # torch was imported before, by the fork server
    sys.exit(guarded(lambda: run_command(words)))


def _has_lost_gpus() -> bool:
    """Whether this machine has GPUs that a fork of the server cannot use, since something started CUDA there."""
    cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
    return cuda is not None and cuda._is_in_bad_fork() and cuda.is_available()


def _become(words: list[str], environment: dict[str, str]) -> None:
    from launch.processes import die_with_parent

    die_with_parent()  # lasts across exec
    # Out of the terminal's group: by Ctrl-C the launcher would give its ranks half a minute. We ask them ourselves.
    os.setpgid(0, 0)
    os.execve(words[0], words, {**os.environ, **environment})
