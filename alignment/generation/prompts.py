"""Prompts in tensors, and whether they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from launch.errors import UserError


def left_pad(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (B, longest), with the padding on the left."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad_id)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


def positions_of(mask: Tensor) -> Tensor:
    """Position ids of left-padded rows: the number of real tokens before each (checklist item 3)."""
    return (mask.cumsum(-1) - mask).clamp(min=0)


def check_lengths(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, numbers: Sequence[int] | None = None
) -> None:
    """UserError for an empty prompt, or one that leaves no room for its completion in the model's context.

    `numbers`: what the prompts are called, from 0; their order when not given.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    for row, prompt in zip(numbers or range(len(prompts)), prompts, strict=True):
        if not prompt:
            raise UserError(f"prompt {row + 1} is empty; remove it or give it at least one token")
        if context is not None and len(prompt) + max_new_tokens > context:
            raise UserError(
                f"prompt {row + 1} has {len(prompt)} tokens, which with max_new_tokens {max_new_tokens} is over the model's "
                f"context of {context}; shorten it, lower max_new_tokens, or use a model with a longer context"
            )
