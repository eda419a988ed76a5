"""Random numbers derived from (seed, purpose, counters), so that a resumed run need not restore them.

Every random choice in alignkit draws from a generator made for that one choice: the same seed, purpose and
counters (epoch, step, sample index) give the same numbers whatever ran before, on however many processes.
Philox is a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for one purpose: BLAKE2b of the seed, the purpose and the counters."""
    text = "/".join([str(int(seed)), purpose, *(str(int(c)) for c in counters)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator (Philox) of its own for one purpose and its counters."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, purpose, *counters)))


def torch_generator(seed: int, purpose: str, *counters: int, device: str = "cpu") -> torch.Generator:
    """A torch.Generator of its own for one purpose and its counters."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *counters))


def uniforms(seed: int, purpose: str, step: int, sample_indices: list[int], length: int) -> np.ndarray:
    """Uniform [0, 1) numbers, one row of `length` for each global sample index: float32 (len(indices), length).

    A row depends on its sample index alone, not on the batch, the rank or the micro-batch that computes it.
    """
    rows = [numpy_generator(seed, purpose, step, index).random(length, dtype=np.float32) for index in sample_indices]
    return np.stack(rows) if rows else np.zeros((0, length), dtype=np.float32)


def permutation(n: int, seed: int, purpose: str, *counters: int) -> np.ndarray:
    """A permutation of range(n) for one purpose and its counters: int64 (n,)."""
    return numpy_generator(seed, purpose, *counters).permutation(n)


def seed_libraries(seed: int, purpose: str, *counters: int) -> None:
    """Seed the global generators of random, NumPy and torch, for the libraries that draw from them."""
    import torch

    value = derive_seed(seed, purpose, *counters)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
