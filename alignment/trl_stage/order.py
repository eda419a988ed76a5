"""The order in which a trainer visits its rows: a pure function of (seed, epoch), whatever the number of processes.

The transformers Trainer draws its order from global generators and groups by length on each rank alone, so another
number of processes trains on other batches. Here the global batches are laid out first and each rank takes its share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from launch.seeding import permutation

POOL = 32  # batches that are sorted together: enough to pad little, few enough that batches stay random mixtures


def length_grouped_order(lengths: Sequence[int], batch: int, seed: int, epoch: int) -> list[int]:
    """Row indices of one epoch: consecutive groups of `batch` rows of similar length, in random order.

    The rows are permuted, sorted by length within pools of POOL batches, cut into batches, and the batches permuted.
    The last batch is filled up with rows from the beginning of the permutation: every row is seen, and every
    batch has the same size on any number of processes (accelerate fills up too, but only when there are several).
    """
    rows = permutation(len(lengths), seed, "trainer/row order", epoch)
    missing = -len(rows) % batch
    rows = np.concatenate([rows, np.resize(rows, missing)])
    size = np.asarray(lengths)
    pools = [rows[start : start + POOL * batch] for start in range(0, len(rows), POOL * batch)]
    ordered = np.concatenate([pool[np.argsort(-size[pool], kind="stable")] for pool in pools])
    batches = ordered.reshape(-1, batch)
    return batches[permutation(len(batches), seed, "trainer/batch order", epoch)].ravel().tolist()


class EpochSampler(Sampler[int]):
    """`length_grouped_order` of the epoch that `epoch_now` gives when the iteration begins.

    The epoch comes from the trainer's step and not from `set_epoch`: after a resume in the middle of an epoch,
    accelerate wraps the sampler so deep that on several processes `set_epoch` does not reach it any more.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, epoch_now: Callable[[], int]) -> None:
        self.lengths, self.batch, self.seed, self.epoch_now = lengths, batch, seed, epoch_now

    def __iter__(self) -> Iterator[int]:
        return iter(length_grouped_order(self.lengths, self.batch, self.seed, self.epoch_now()))

    def __len__(self) -> int:
        return len(self.lengths) + -len(self.lengths) % self.batch
