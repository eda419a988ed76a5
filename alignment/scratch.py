"""Memory that is used again and again for tensors of megabytes: fresh pages cost more than what is done to them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """Memory by name, kept from one use to the next."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, whose memory the next call of this name and type takes again."""
        size, key = math.prod(shape), (name, dtype)
        if key not in self.flat or self.flat[key].numel() < size:
            self.flat[key] = torch.empty(size, dtype=dtype, device=self.device)
        return self.flat[key][:size].view(*shape)
