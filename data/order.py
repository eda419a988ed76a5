"""Which rows make the global batch of a step: a pure function of (seed, step), whatever the number of processes."""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np

from data.packing import Batch
from launch.errors import UserError
from launch.seeding import permutation


class Rows(Protocol):
    """Rows of fixed length that are counted by epoch: `PackedRows` and `Windows`."""

    @property
    def count(self) -> int: ...

    def take(self, epoch: int, indices: np.ndarray) -> Batch: ...


@functools.lru_cache(maxsize=4)  # every step of an epoch asks for it
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits its rows: a permutation of range(count), read-only int64 (count,)."""
    order = permutation(count, seed, "data/epoch order", epoch)
    order.flags.writeable = False
    return order


def batch_rows(step: int, batch_size: int, count: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """(epoch, row indices) of the global batch of a step; a batch that crosses the end of an epoch has two parts.

    Sample g = step * batch_size + j of the run is row epoch_order(g // count)[g % count], so a resumed run needs
    nothing but its step.
    """
    parts = []
    sample, end = step * batch_size, (step + 1) * batch_size
    while sample < end:
        epoch, start = divmod(sample, count)
        stop = min(count, start + end - sample)
        parts.append((epoch, epoch_order(count, seed, epoch)[start:stop]))
        sample += stop - start
    return parts


def global_batch(rows: Rows, step: int, batch_size: int, seed: int) -> Batch:
    """The arrays of the global batch of a step, (batch_size, T) each."""
    parts = [rows.take(epoch, indices) for epoch, indices in batch_rows(step, batch_size, rows.count, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rank_part(batch: Batch, rank: int, world: int) -> Batch:
    """The contiguous share of one process; the shares of all processes are the batch. UserError if it does not divide."""
    size = len(next(iter(batch.values())))
    if size % world:
        raise UserError(f"batch_size: {size} rows do not divide by {world} processes; give a multiple of {world}")
    share = size // world
    return {name: array[rank * share : (rank + 1) * share] for name, array in batch.items()}
