"""Attention of short rows in bf16 on a CPU, by the float32 kernel.

PyTorch's flash attention for CPUs has a slow backward pass there: 64 heads of 96 tokens take 14 to 19 ms forward and backward
in bf16, about 8 ms when they go through float32 and back; 128 heads of 64 tokens 24 and 5 ms (2.15, 2 cores with AMX;
docs/log.md). At 256 tokens the gain is a tenth, at 512 none, and the forward pass alone is slower: there the bf16 kernel stays.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

LONGEST = 128
"""Tokens of a row up to which float32 is taken. By the length alone: passes with and without gradient agree to the bit."""


@functools.cache
def take_float32_for_short_rows() -> None:
    """Let models of transformers that attend by its `sdpa` interface, their default, do so in this process."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
    ) -> tuple[Tensor, None]:
        cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        in_bf16 = query.device.type == "cpu" and (cast or query.dtype == torch.bfloat16)
        others = named.get("position_bias") is not None or named.get("cache") is not None  # in bf16 themselves
        if not in_bf16 or others or key.shape[2] > LONGEST:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
        with torch.autocast("cpu", enabled=False):
            found, _ = sdpa_attention_forward(
                module, query.float(), key.float(), value.float(), attention_mask, **named
            )
        return found.bfloat16(), None

    ALL_ATTENTION_FUNCTIONS.register("sdpa", forward)
