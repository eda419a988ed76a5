"""Grey levels: uint8 in the store, [-1, 1] in the models."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_signed(images: np.ndarray) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return torch.from_numpy(images).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float in [-1, 1] -> uint8 0..255, rounded; what lies outside is cut."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
