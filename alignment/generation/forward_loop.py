"""Sampling through the forward pass of any causal language model of transformers: the way when `weights` does not know it.

The same tokens as the decoder's up to rounding, several times slower: the model's own forward pass allocates and launches
far more for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from alignment.generation.prompts import left_pad, positions_of
from alignment.generation.sampling import Completion, Sampling, pick_tokens

COMPACT_BELOW = 0.75  # drop finished rows once the running ones are fewer than this share: the whole cache is copied


@torch.no_grad()
def generate_batch(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, uniform_BT: np.ndarray | None
) -> list[Completion]:
    """Completions of one batch of prompts. `uniform_BT`: uniform numbers (B, max_new_tokens), or None for greedy."""
    device = next(model.parameters()).device
    ids, mask = left_pad(prompts, sampling.pad_id, device)
    mask = torch.cat([mask, mask.new_ones(len(prompts), sampling.max_new_tokens)], 1)
    uniform = None if uniform_BT is None else torch.from_numpy(uniform_BT).to(device)
    done = [Completion([], []) for _ in prompts]
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
        tokens, logprobs = pick_tokens(
            out.logits[:, -1].t(), sampling.temperature, None if uniform is None else uniform[rows, t]
        )
        for row, token, logprob, on in zip(
            rows.tolist(), tokens.tolist(), logprobs.tolist(), running.tolist(), strict=True
        ):
            if on:
                done[row].token_ids.append(token)
                done[row].logprobs.append(logprob)
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
    return done
