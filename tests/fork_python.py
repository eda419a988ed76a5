"""What a new Python would do with `-c CODE`, by a fork of this one, which has imported the libraries."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from typing import Any
from unittest.mock import patch


def fork_python(code: str, kept: Sequence[int] = (), standard: Mapping[int, int] | None = None) -> int:
    """The process that runs `code`: other files than `kept` are closed, no handler is left, blocked signals stay so.

    `standard` says which files become its 0, 1 and 2; those that are not named it shares with this process. It ends with 0,
    whatever `code` exits with, or with 1 after a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else the new process would write it, too
    if pid := os.fork():
        return pid
    try:
        for number, descriptor in (standard or {}).items():
            os.dup2(descriptor, number)
        _close_all_but({0, 1, 2, *kept})
        _forget_handlers()
        sys.stdin, sys.stdout = (os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rw"))
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        multiprocessing.process._parent_process = None
        _forget_servers()
        with contextlib.suppress(SystemExit):
            exec(code, {"__name__": "__main__"})
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _close_all_but(kept: set[int]) -> None:
    numbers = sorted(kept)
    for low, high in zip(numbers, [*numbers[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)


def _forget_handlers() -> None:
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _forget_servers() -> None:
    """They are not those of the new process, and the fork server's lock is held while it is started, by a fork."""
    resource_tracker._resource_tracker.__init__()
    server = forkserver._forkserver
    preload = server._preload_modules
    server.__init__()
    server.set_forkserver_preload(preload)


def _spawnv_passfds(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
    return fork_python(args[-1], kept=[int(descriptor) for descriptor in passfds])


def forked_servers() -> contextlib.AbstractContextManager[Any]:
    """The fork servers and resource trackers that multiprocessing starts meanwhile are forked."""
    return patch("multiprocessing.util.spawnv_passfds", _spawnv_passfds)
