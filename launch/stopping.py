"""The signals that ask a job to end in order: SIGTERM and SIGUSR1, as schedulers send them, and Ctrl-C (SIGINT)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from launch.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE


class Stopped(BaseException):
    """The job was asked to stop and has saved; the same command resumes it. `code` is the exit code that tells so.

    No Exception, as KeyboardInterrupt is none: it may be raised anywhere, and libraries swallow Exceptions.
    """

    def __init__(self, code: int = EXIT_RESUMABLE) -> None:
        super().__init__()
        self.code = code


@contextlib.contextmanager
def listening(act: Callable[[int], None]) -> Iterator[None]:
    """Inside, these signals call `act` with the exit code that a job so stopped has. A second Ctrl-C ends the process.

    A process that was started with Ctrl-C switched off (`nohup`, a background job of a script) leaves it off. The ranks
    of a launched job are in sessions of their own: torchelastic passes the first Ctrl-C on, and sends SIGTERM for the
    second.
    """
    owner = os.getpid()
    ending = (signal.SIGINT, signal.SIGTERM) if "LOCAL_RANK" in os.environ else (signal.SIGINT,)

    def receive(number: int, _frame: Any) -> None:
        if os.getpid() != owner:  # a worker that a library forked from us; Ctrl-C is for its owner to act on
            return None if number == signal.SIGINT else os._exit(128 + number)
        if number == signal.SIGINT:  # the next is left to the kernel: it also ends a process that is stuck in a library
            for second in ending:
                signal.signal(second, signal.SIG_DFL)
        act(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_RESUMABLE)

    numbers = [signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
