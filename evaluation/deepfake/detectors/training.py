"""How the small networks of this folder are trained: batches of crops, AdamW with a one-cycle rate, derived seeds.

One thread: sums over threads depend on their number, and at this size one is nearly as fast. The same machine gives the
same weights, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from launch.seeding import numpy_generator, torch_generator

CROP = 64
"""Largest side of a crop that a network is trained on; whole images where they are smaller."""
SCORED_PIXELS = 2**21
"""Pixels of images that are scored at a time."""


def initialise(model: nn.Module, seed: int, purpose: str) -> None:
    """He et al. 2015 for ReLU, zero biases."""
    generator = torch_generator(seed, f"{purpose} weights")
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            else:
                parameter.zero_()


def train(model: nn.Module, steps: int, loss_of: Callable[[int], Tensor], rate: float = 3e-3) -> None:
    """`steps` steps down the loss that `loss_of(step)` computes; the model is frozen afterwards."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for step in range(steps):
            loss = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    finally:
        torch.set_num_threads(threads)
    model.eval().requires_grad_(False)


def crops(images: np.ndarray, count: int, seed: int, purpose: str, step: int) -> Tensor:
    """`count` random images, each cut to a random square of at most CROP pixels: float32 (count, C, S, S) in [-1, 1]."""
    generator = numpy_generator(seed, f"{purpose} crops", step)
    height, width = images.shape[2:]
    side = min(CROP, height, width)
    rows = generator.integers(0, len(images), count)
    tops, lefts = generator.integers(0, height - side + 1, count), generator.integers(0, width - side + 1, count)
    cut = [images[r, :, t : t + side, x : x + side] for r, t, x in zip(rows, tops, lefts, strict=True)]
    return as_pixels(np.stack(cut))


def as_pixels(images: np.ndarray) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).float() / 127.5 - 1


def in_parts(model: Callable[[Tensor], Tensor], images: np.ndarray) -> np.ndarray:
    """The outputs of a frozen model on whole images, some at a time: float64 (N, ...)."""
    size = max(1, SCORED_PIXELS // (images.shape[2] * images.shape[3]))
    with torch.no_grad():
        parts = [model(as_pixels(images[start : start + size])) for start in range(0, len(images), size)]
    return torch.cat(parts).double().numpy()
