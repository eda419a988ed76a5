"""Sampling completions from a causal language model: KV-cached, left-padded, and the same on any batch layout.

A token is drawn by inverting the cumulative distribution at one uniform number that belongs to the sample's global
index and its position. So a sample does not depend on the batch, the micro-batch or the rank that it was drawn in.
Sampling is by temperature only: with top-k, top-p or a repetition penalty the log-probabilities that PPO computes
would belong to another distribution (checklist item 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from launch.errors import UserError
from launch.seeding import uniforms

COMPACT_BELOW = 0.75  # drop finished rows once the running ones are fewer than this share: copying the cache costs too


@dataclass(frozen=True)
class Sampling:
    """How to draw completions. Temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float
    eos_id: int
    pad_id: int


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


def pick_tokens(logits_BV: Tensor, temperature: float, uniform_B: Tensor | None) -> Tensor:
    """Next tokens (B,): the argmax, or the token where the cumulative probability passes the uniform number.

    The cumulative sum runs in float64: in float32 its rounding reaches 1e-3 of the rare tokens' mass for V = 32k.
    """
    if temperature == 0 or uniform_B is None:
        return logits_BV.argmax(-1)
    cumulative_BV = torch.softmax(logits_BV.double() / temperature, -1).cumsum(-1)
    threshold_B1 = uniform_B.to(cumulative_BV).unsqueeze(-1) * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1).clamp(max=logits_BV.shape[-1] - 1)


@torch.no_grad()
def generate_batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, uniform_BT: np.ndarray | None
) -> list[list[int]]:
    """Completions of one batch of prompts: token ids with the EOS that ended them, if one did.

    `uniform_BT`: uniform numbers (B, max_new_tokens), or None for greedy. Finished rows leave the batch.
    """
    device = next(model.parameters()).device
    ids, mask = left_pad(prompts, sampling.pad_id, device)
    mask = torch.cat([mask, mask.new_ones(len(prompts), sampling.max_new_tokens)], 1)
    uniform = None if uniform_BT is None else torch.from_numpy(uniform_BT).to(device)
    completions: list[list[int]] = [[] for _ in prompts]
    rows = torch.arange(len(prompts), device=device)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache = DynamicCache(config=model.config)
    width, positions = ids.shape[1], positions_of(mask[:, : ids.shape[1]])
    for t in range(sampling.max_new_tokens):
        out = model(
            ids,
            attention_mask=mask[:, : width + t],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = pick_tokens(
            out.logits[:, -1].float(), sampling.temperature, None if uniform is None else uniform[rows, t]
        )
        for row, token, on in zip(rows.tolist(), tokens.tolist(), running.tolist(), strict=True):
            if on:
                completions[row].append(token)
        running = running & (tokens != sampling.eos_id)
        if not running.any():
            break
        positions = positions[:, -1:] + 1
        if running.float().mean() < COMPACT_BELOW:
            keep = running.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            tokens, mask, positions, rows, running = (
                tokens[keep],
                mask[keep],
                positions[keep],
                rows[keep],
                running[keep],
            )
        ids = tokens.unsqueeze(1)
    return completions


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
    purpose: str,
    step: int,
    sample_indices: Sequence[int],
    batch_size: int,
) -> list[list[int]]:
    """Completions for many prompts, in their order; see `generate_batch`. Prompts are batched by length.

    `sample_indices` are global: the sample of an index is the same whoever draws it.
    """
    check_lengths(model, prompts, sampling.max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        noise = None
        if sampling.temperature > 0:
            noise = uniforms(seed, purpose, step, [sample_indices[i] for i in chosen], sampling.max_new_tokens)
        for i, completion in zip(
            chosen, generate_batch(model, [prompts[i] for i in chosen], sampling, noise), strict=True
        ):
            completions[i] = completion
    return completions


def check_lengths(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """UserError for an empty prompt, or one that leaves no room for its completion in the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {row + 1} is empty; remove it or give it at least one token")
        if context is not None and len(prompt) + max_new_tokens > context:
            raise UserError(
                f"prompt {row + 1} has {len(prompt)} tokens, which with max_new_tokens {max_new_tokens} is over the model's "
                f"context of {context}; shorten it, lower max_new_tokens, or use a model with a longer context"
            )
