"""Work in a thread beside the main one, which alone talks to the other ranks."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from launch.errors import UserError
from launch.runtime import Runtime

T = TypeVar("T")
POLL_S = 1.0
GIVE_UP_S = 5.0


def in_background(work: Callable[[], T], runtime: Runtime, daemon: bool) -> Future[T]:
    """Call `work` in a thread, without gradients, in the job's precision, on its device: to torch these are a thread's own.

    The end of the process waits for it, unless it is a `daemon`: for work that may wait for something for ever. It
    must make no collective call.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            if runtime.device.type == "cuda":
                torch.cuda.set_device(runtime.device)
            with torch.no_grad(), runtime.autocast():
                result = work()
        except BaseException as error:  # whatever it is: it is raised where the result is asked for
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, daemon=daemon).start()
    return future


def wait_together(
    future: Future[T], runtime: Runtime, alive: Callable[[], Any], meanwhile: Callable[[], Any] = lambda: None
) -> T:
    """This rank's result, once those of all ranks are there. All ranks call this together, each with a future of its own.

    No rank waits for another in a collective for more than a second, however long one of them works: so nothing times
    out. `alive` is called on ranks that have done their part; one that works must tell by itself that it lives.
    `meanwhile` is called about once a second on all ranks alike: it may make collective calls, and end the wait by an
    exception. What fails on one rank is raised on all.
    """
    while True:
        concurrent.futures.wait([future], POLL_S)
        done = future.done()
        if done:
            alive()
        failed = done and future.exception() is not None
        working, failures = runtime.sum(torch.tensor([int(not done), int(failed)])).tolist()
        if failures:
            raise_everywhere(future.exception() if failed else None, runtime)
        if not working:
            return future.result()
        try:
            meanwhile()
        except BaseException:
            concurrent.futures.wait([future], GIVE_UP_S)  # a thread inside torch at exit would abort the process
            raise


def raise_everywhere(error: BaseException | None, runtime: Runtime) -> None:
    """Raise this rank's error, and on ranks without one that of the first rank that has one."""
    mine = None if error is None else (isinstance(error, UserError), f"{error}", type(error).__name__)
    found = runtime.gather_objects(mine)
    if error is not None:
        raise error
    rank, (expected, text, kind) = next((rank, fault) for rank, fault in enumerate(found) if fault is not None)
    if expected:
        raise UserError(f"rank {rank}: {text}")
    raise RuntimeError(f"rank {rank}: {kind}: {text}")
