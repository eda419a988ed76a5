"""A command of alignkit as a shell starts it, but forked from a server that has imported the libraries.

It is a process of its own, in a session of its own, with its own output, environment and signals; without seconds of imports.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from launch.entry import run_module, run_target
from tests.fork_python import forked_servers
from tests.forked import context
from tests.support import ROOT, environment, wait_for_rows


def _become(module: str, words: list[str], place: str, env: dict[str, str], outputs: tuple[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *words]
    run_module(*module.split(":"))


class ForkedCommand:
    """What the tests use of `subprocess.Popen`, for a command in a forked process."""

    def __init__(self, module: str, words: Sequence[Any], cwd: Path) -> None:
        """`module` is a stage (`alignment.ppo`), or `module:function` of the words."""
        self._folder = tempfile.TemporaryDirectory()
        paths = [Path(self._folder.name) / name for name in ("out", "err")]
        for path in paths:
            path.touch()
        self.args = [module, *map(str, words)]
        self._files = [path.open() for path in paths]
        self._process = context.Process(
            target=_become,
            args=(module, self.args[1:], str(cwd), environment(PYTHONPATH=str(ROOT)), tuple(map(str, paths))),
        )
        self._process.start()
        self.pid = self._process.pid
        self.stderr = self
        self.kill = self._process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def readline(self) -> str:
        """The next line that it writes to stderr; what there is of it when it has ended."""
        line = ""
        while not line.endswith("\n"):
            ended = self.poll() is not None
            line += self._files[1].readline()
            if ended:
                break
            time.sleep(0.01)
        return line

    def communicate(self, timeout: float) -> tuple[str, str]:
        """All that it writes, from what was not read yet, until it ends."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        out, err = (file.read() for file in self._files)
        return out, err


def run_command(module: str, *words: Any, cwd: Path = ROOT, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    process = ForkedCommand(module, words, cwd)
    try:
        out, err = process.communicate(timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
    finally:
        process.kill()


def start_command(module: str, words: Sequence[Any], log: Path, rows: int) -> ForkedCommand:
    """Start a command and wait until its log has so many rows."""
    process = ForkedCommand(module, words, ROOT)
    wait_for_rows(process, log, rows)
    return process


def run_lifecycle(recipe: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`alignkit run`, for tests of what it does with its stages. How its own server starts and ends: test_stage_process.py."""
    return run_command("tests.commands:lifecycle", recipe, "--output_dir", out, *words)


def lifecycle(words: list[str]) -> None:
    """Its stages are forked from itself: what its server would import for some seconds is here already."""
    with patch("launch.stage_process._server", lambda stages: multiprocessing.get_context("fork")):
        run_target("launch.lifecycle", "main", words)


def toys(words: list[str]) -> None:
    """`python -m tests.launch.toy_run`."""
    importlib.import_module("tests.launch.toy_run")
    served_lifecycle(words)


def served_lifecycle(words: list[str]) -> None:
    """`alignkit run`: its server is started and told as ever, but a Python that has imported all is forked."""
    with forked_servers():
        run_target("launch.lifecycle", "main", words)
