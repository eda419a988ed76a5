"""What a CUDA graph does, on the CPU: a step's operations are recorded once, and replayed on the very same tensors.

So a replay shows the faults that a graph would: numbers of Python and addresses are those of the capture, and an operation
that would have to wait for the device cannot be captured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")
"""Operations whose result, or its shape, the host has to wait for."""


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Operations(TorchDispatchMode):
    """Records what is called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}\nand more lines")
        out = func(*args, **(kwargs or {}))
        read = {storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and storage(leaf) not in read]
        self.calls.append((func, args, kwargs or {}, made))
        return out

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def replay(self) -> None:
        """A graph's kernels know of neither."""
        for func, args, kwargs, made in self.calls:
            out = func(*args, **kwargs)
            fresh = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)] if made else []
            for old, new in zip(made, fresh, strict=True):
                old.copy_(new)

    def spoil(self, kept: set[int]) -> None:
        """Overwrite what was made, as others do that share the memory; not the storages in `kept`."""
        for *_, made in self.calls:
            for tensor in made:
                if tensor.is_floating_point() and storage(tensor) not in kept:
                    tensor.detach().untyped_storage().fill_(0xFF)  # NaN in every floating type


class OpRecorder:
    """A `Recorder` of operations. `captured` counts its captures, `replayed` their replays.

    They share a pool of memory: a replay spoils what all other captures have made, but for their results, and, when it is the
    last of those that were captured together, what these have made.
    """

    def __init__(self, room: int = 2**40) -> None:
        self.room, self.captured, self.replayed = room, 0, 0
        self.pool: list[list[Operations]] = []
        """Those that were captured together."""
        self.results: set[int] = set()

    def capture(self, step):
        return self.capture_all([step])[0]

    def capture_all(self, steps):
        for step in steps:
            step()  # as a warm-up does: memory that is kept is taken before the capture
        self.pool.append([])
        return [self._capture(step, self.pool[-1]) for step in steps]

    def _capture(self, step, together):
        with Operations() as operations:
            result = step()
        self.captured += 1
        together.append(operations)
        self.results.add(storage(result))

        def replay() -> Tensor:
            self.replayed += 1
            operations.replay()
            for others in self.pool:
                if others is not together or operations is together[-1]:
                    for other in others:
                        other.spoil(self.results)
            return result

        return replay
