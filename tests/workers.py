"""Workers of pytest-xdist, forked from the process that starts them after it has imported the libraries.

xdist starts a Python for each. All of them import the same, for 15 s of a processor each, and in a fresh environment all
compile the same at the same time, for 19 s more.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import execnet
from execnet.gateway_io import Popen2IO, popen_bootstrapline

from tests.fork_python import fork_python
from tests.libraries import import_libraries


class _Worker(Popen2IO):
    """What execnet uses of `Popen2IOMaster`: pipes to a process that reads and runs a line of code."""

    def __init__(self) -> None:
        theirs, ours = os.pipe(), os.pipe()
        self.pid = fork_python(popen_bootstrapline, standard={0: theirs[0], 1: ours[1]})
        os.close(theirs[0])
        os.close(ours[1])
        self.files = os.fdopen(theirs[1], "wb"), os.fdopen(ours[0], "rb")

    def connect(self, args: Any, execmodel: Any) -> _Worker:
        super().__init__(*self.files, execmodel=execmodel)
        return self

    def wait(self) -> int | None:
        with contextlib.suppress(ChildProcessError):
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def forked(count: int) -> Iterator[None]:
    """The first `count` Pythons that execnet starts are forked. All at once, while this process has no other thread."""
    import_libraries()
    workers = [_Worker() for _ in range(count)]
    start = execnet.gateway_io.Popen2IOMaster

    def next_one(args: Any, execmodel: Any) -> Any:
        return workers.pop().connect(args, execmodel) if workers else start(args, execmodel)

    try:
        with patch("execnet.gateway_io.Popen2IOMaster", next_one):
            yield
    finally:
        for worker in workers:  # that nobody asked for
            worker.kill()
            worker.wait()
