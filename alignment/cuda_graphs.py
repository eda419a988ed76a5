"""CUDA graphs: work on a GPU that is captured once and then launched as a whole.

A graph replays the very kernels on the very addresses that it was captured with. What is captured must have fixed shapes and
wait for nothing, and read whatever changes out of memory that stays where it is.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

KEPT_SHARE = 0.1  # of the device's memory: as much may be held beside what runs the usual way
WARM_UPS = 2  # runs before a capture, in which libraries choose kernels and take their workspaces
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""Between a first replay and the same work run the usual way, relative to the largest number: a graph that reads or writes in
the wrong place is off by its whole size, and the order of sums may differ."""

Replay = Callable[[], Tensor]


class Recorder(Protocol):
    """How work becomes a replay."""

    room: int
    """Bytes that may be held beside what runs the usual way."""

    def capture(self, step: Callable[[], Tensor]) -> Replay:
        """What does to the device's memory what `step` does, and gives the result's tensor, which is the same each time.

        `step` may be run any number of times. RuntimeError for one that cannot be captured.
        """
        ...

    def capture_all(self, steps: Sequence[Callable[[], Tensor]]) -> list[Replay]:
        """`capture` of steps that go on with what the one before has made; they are run, and must be replayed, in turn."""
        ...


class CudaRecorder:
    """torch.cuda.CUDAGraph."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.newest: Callable[[], Any] = lambda: None
        """The graph that was captured last, if it is still there: the next one shares its pool of memory. They never run at
        the same time, and what one leaves in the pool for the next (a forward pass for its backward pass) is read before
        any other is replayed. A pool whose graphs are all gone must not be named again (an assertion of torch's allocator)."""
        self.room = spare_bytes(device)

    def capture(self, step: Callable[[], Tensor]) -> Replay:
        return self.capture_all([step])[0]

    def capture_all(self, steps: Sequence[Callable[[], Tensor]]) -> list[Replay]:
        stream = self.stream
        with torch.cuda.device(self.device):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    for step in steps:
                        step()
            torch.cuda.current_stream().wait_stream(stream)
            return [self._capture(step) for step in steps]

    def _capture(self, step: Callable[[], Tensor]) -> Replay:
        graph, newest = torch.cuda.CUDAGraph(), self.newest()
        pool = None if newest is None else newest.pool()
        # thread_local: NCCL's own thread looks at its events meanwhile
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            result = step()
        self.newest = weakref.ref(graph)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def spare_bytes(device: torch.device) -> int:
    """What one recorder may hold of a GPU's memory."""
    return int(KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory)


def recorder_for(device: torch.device) -> Recorder | None:
    """None where nothing is captured."""
    return CudaRecorder(device) if can_capture(device) else None


def can_capture(device: torch.device) -> bool:
    """Not on the CPU, nor in a thread beside the main one.

    While a stream is being captured nothing may wait for the whole device, as the main thread does when it trains.
    """
    return device.type == "cuda" and threading.current_thread() is threading.main_thread()


def agree(found: Tensor, expected: Tensor, precision: torch.dtype) -> bool:
    """Whether two results of products in a precision are the same up to its TOLERANCE."""
    tolerance, found, expected = TOLERANCE[precision], found.detach().float(), expected.detach().float()
    scale = float(expected.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
