"""Images from a model, each from its own noise: image i of a seed is the same in any batch, on any process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from generative.folders import GenerativeModel
from generative.scaling import to_uint8
from launch.seeding import numpy_generator

FEWEST_ROWS = 16  # smaller batches take other kernels on the CPU, which round differently (2e-6, measured)


def sample_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """N(0, 1) noise (len(indices), *shape), float32; a row depends on the seed and its index alone."""
    rows = [numpy_generator(seed, "generative/sample", i).standard_normal(shape, np.float32) for i in indices]
    return torch.from_numpy(np.stack(rows))


def sample_images(model: GenerativeModel, indices: Sequence[int], seed: int, **options: Any) -> np.ndarray:
    """The images of these indices as one batch: uint8 (len(indices), C, H, W). `options` go to `model.generate`."""
    noise = sample_noise(seed, indices, model.noise_shape)
    padding = noise.new_zeros((max(0, FEWEST_ROWS - len(noise)), *model.noise_shape))
    filled = torch.cat([noise, padding]).to(next(model.parameters()).device)
    return to_uint8(model.generate(filled, **options))[: len(noise)]
