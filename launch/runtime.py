"""Where a job runs: process group, device, precision and threads, the same for one CPU and for many GPU nodes.

accelerate owns the devices. Three of its traps are closed here (each measured, see docs/launch.md): on the CPU it
leaves the backend unset under DeepSpeed, and every rank then believes that it is the only one; DeepSpeed's own
process groups ignore the time-out; oversubscribed OpenMP threads collapse the throughput.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, gather_object
from transformers.utils import logging as transformers_logging

from launch.errors import UserError, nearest
from launch.processes import die_with_parent
from launch.shards import guard_deepspeed

Precision = Literal["fp32", "bf16"]


@dataclass
class Runtime:
    """One process of a job. `precision` may be decided later, by `choose_precision`."""

    accelerator: Accelerator
    precision: Precision

    @property
    def device(self) -> torch.device:
        """Of this process; a GPU with its number, which accelerate leaves out of the device of a single process."""
        device = self.accelerator.device
        unnumbered = device.type == "cuda" and device.index is None
        return torch.device("cuda", torch.cuda.current_device()) if unnumbered else device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage, or 0 without DeepSpeed."""
        plugin = self.accelerator.state.deepspeed_plugin
        return int(plugin.zero_stage) if plugin is not None else 0

    @property
    def uses_deepspeed(self) -> bool:
        return self.accelerator.state.deepspeed_plugin is not None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast when that is this job's precision; matrix products run in bf16, reductions in fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.accelerator.wait_for_everyone()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a tensor, on every rank (a new tensor)."""
        if self.world == 1:
            return tensor.clone()
        total = tensor.detach().clone().to(self.device)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of all ranks, which have as many each, in rank order, on every rank."""
        return cast(torch.Tensor, self.accelerator.gather(tensor.contiguous()))

    def gather_objects(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order, on every rank."""
        return gather_object([value]) if self.world > 1 else [value]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` on every rank."""
        if self.world == 1:
            return value
        box = [value]
        broadcast_object_list(box)
        return box[0]

    def any_true(self, flag: bool) -> bool:
        """Whether `flag` is true on some rank: how ranks agree before they act."""
        return int(self.sum(torch.tensor(1 if flag else 0)).item()) > 0


def start_runtime(
    precision: str = "fp32",
    timeout_s: float = 1800.0,
    trackers: list[str] | None = None,
    tracker_dir: str | None = None,
) -> Runtime:
    """Join the job that `accelerate launch` (or a plain `python`) started.

    `precision`: "fp32", "bf16" or "auto" (bf16 on a GPU that has it; on the CPU fp32 until `choose_precision` has
    measured). Raises UserError when the world that accelerate sees is not the real one.
    """
    _check_trackers(trackers or [])
    if "LOCAL_RANK" in os.environ:
        die_with_parent()  # the launcher: when it is killed, its ranks must not go on and hold the run's folder
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    chosen = _initial_precision(precision, on_gpu)
    group = InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=timeout_s))
    launched = "RANK" in os.environ
    if not on_gpu and launched:  # without a launcher accelerate takes a named backend for a launched job
        group.backend = "gloo"
    if deepspeed:
        _tame_deepspeed(timeout_s)
    accelerator = Accelerator(
        cpu=not on_gpu
        and launched
        and not deepspeed,  # else accelerate wraps nothing in DDP; with it, it drops DeepSpeed
        mixed_precision="bf16" if deepspeed and chosen == "bf16" else "no",
        kwargs_handlers=[group],
        log_with=trackers or None,
        project_dir=tracker_dir,
        step_scheduler_with_optimizer=False,
    )
    _check_world(accelerator)
    transformers_logging.disable_progress_bar()  # a run has one display, its own
    _set_threads(accelerator)
    return Runtime(accelerator, chosen)


def _check_trackers(names: list[str]) -> None:
    """UserError for a tracker that accelerate does not know, or whose package is not installed (named as it is)."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"trackers: unknown tracker '{name}'{nearest(name, list(LOGGER_TYPE_TO_CLASS))}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed; run `pip install {name}`")


def _initial_precision(precision: str, on_gpu: bool) -> Precision:
    if precision == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def _check_world(accelerator: Accelerator) -> None:
    """accelerate's world must be torch.distributed's and the launcher's: else every rank trains on all the data alone."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    real = dist.get_world_size() if dist.is_initialized() else 1
    alone = accelerator.distributed_type == DistributedType.NO
    if not accelerator.num_processes == real == launched or (alone and real > 1):
        raise UserError(
            f"the launcher started {launched} processes, torch.distributed has {real}, "
            f"accelerate sees {accelerator.num_processes} ({accelerator.distributed_type}): "
            "these must be equal; start the job with `accelerate launch` and one of the configurations in launch/accelerate"
        )


def _set_threads(accelerator: Accelerator) -> None:
    """This process's share of the cores, unless OMP_NUM_THREADS says otherwise.

    `accelerate launch` sets it to 1 when the user does not, so of a launched CPU job a 1 says nothing.
    """
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    unsaid = "1" if "ACCELERATE_MIXED_PRECISION" in os.environ and accelerator.device.type == "cpu" else None
    if os.environ.get("OMP_NUM_THREADS") not in (None, unsaid):
        return
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // local_world))


def _tame_deepspeed(timeout_s: float) -> None:
    """Three faults of DeepSpeed 0.19, measured (docs/launch.md): two of its start, and how it reads (launch/shards.py).

    It makes its process groups without a time-out: a wedged rank then hangs the others for 30 minutes. And on the CPU it
    compiles an operator at start (100 s the first time) that inference alone uses; a job that is killed meanwhile leaves a
    lock behind, for which every later job on the machine waits for ever.
    """
    # By its full name: the package `deepspeed.comm` has torch itself under the name `torch`
    backend: Any = importlib.import_module("deepspeed.comm.torch")
    backend.build_shm_op = lambda: None

    def new_group(self: Any, ranks: list[int]) -> Any:
        return dist.new_group(ranks, timeout=datetime.timedelta(seconds=timeout_s))

    backend.TorchBackend.new_group = new_group
    guard_deepspeed()


def choose_precision(runtime: Runtime, step: Callable[[], Any], repeats: int = 3) -> Precision:
    """Time `step` (one real training step without side effects) in fp32 and in bf16 autocast; set and return the faster.

    The best of `repeats` after one warm-up counts, the two in turn, since other jobs disturb the clock; rank 0's
    finding holds for all. bf16 must win by 20 %: below that its rounding buys little, and a busy machine's clock would
    choose, another one at each start.
    """
    best = {"fp32": float("inf"), "bf16": float("inf")}
    before = runtime.precision
    for attempt in range(repeats + 1):
        for precision in best:
            runtime.precision = precision  # type: ignore[assignment]
            start = time.perf_counter()
            step()
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            if attempt > 0:
                best[precision] = min(best[precision], time.perf_counter() - start)
    runtime.precision = before
    runtime.precision = runtime.broadcast("bf16" if 1.2 * best["bf16"] < best["fp32"] else "fp32")
    return runtime.precision


@contextlib.contextmanager
def running(runtime: Runtime) -> Iterator[Runtime]:
    """Leave the process group in order at the end: a group that is not destroyed aborts DeepSpeed jobs at exit."""
    try:
        yield runtime
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
