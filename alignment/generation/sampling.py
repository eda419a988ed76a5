"""How a token is drawn: by inverting the cumulative distribution at one uniform number of its own.

Sampling is by temperature only: with top-k, top-p or a repetition penalty the log-probabilities that PPO computes
would belong to another distribution (checklist item 6).

Shapes: V vocabulary, B rows, K blocks of W tokens (K W >= V). Logits stand vocabulary first, one column for each row:
so the engine's matrix products give them, and a column's blocks are then slices of one contiguous array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from launch.native import ops as native


@dataclass(frozen=True)
class Sampling:
    """How to draw completions. Temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float
    eos_id: int
    pad_id: int


@dataclass(frozen=True)
class Completion:
    """One sampled response."""

    token_ids: list[int]
    """With the EOS that ended it, if one did."""
    logprobs: list[float]
    """Log-probability of each token, in nats, under softmax(logits / temperature); of greedy ones under softmax(logits)."""


def block_width(vocab_size: int) -> int:
    """W: the power of two nearest to the root of V, where looking for the block and inside it cost the same."""
    return 2 ** round(math.log2(vocab_size) / 2)


def padded_size(vocab_size: int) -> int:
    """K W: the vocabulary rounded up to whole blocks."""
    return -(-vocab_size // block_width(vocab_size)) * block_width(vocab_size)


def pick_tokens(
    logits_VB: Tensor, temperature: float, uniform_B: Tensor | None, work: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Next tokens (B,) and their log-probabilities (B,), float32.

    Temperature 0, or no uniform numbers: the argmax. Else the first token whose cumulative probability passes the
    uniform number: the block by cumulative sums of block sums, then the token by cumulative sums inside the block.
    The sums are float64 over float32 exponentials: in float32 a cumulative sum over V = 32k is off by 1e-3 of the
    rare tokens' mass; this is within 1e-6 of the float64 distribution. A token of probability 0 is never drawn.

    `work`: float32 scratch of at least padded_size(V) B elements, to save an allocation of megabytes per token.
    """
    rows = logits_VB.shape[1]
    greedy = temperature == 0 or uniform_B is None
    temperature = 1.0 if greedy else temperature
    logits_VB = logits_VB.contiguous()  # the model's own forward pass gives them the other way round
    if native.takes(logits_VB):
        return native.pick(logits_VB, temperature, None if greedy else uniform_B, block_width(len(logits_VB)))
    weights_KWB = _exponentials(logits_VB, temperature, work)
    sums_KB = weights_KWB.sum(1, dtype=torch.float64)
    if greedy:
        tokens_B, total_B = logits_VB.argmax(0), sums_KB.sum(0)
    else:
        assert uniform_B is not None
        tokens_B, total_B = _invert(weights_KWB, sums_KB, uniform_B)
    chosen_B = weights_KWB.view(-1, rows).gather(0, tokens_B.unsqueeze(0)).squeeze(0)
    return tokens_B, (chosen_B.double() / total_B).log().float()


def _exponentials(logits_VB: Tensor, temperature: float, work: Tensor | None) -> Tensor:
    """exp((logits - max) / temperature) in float32, as (K, W, B); zero where a block reaches past the vocabulary."""
    size, rows = logits_VB.shape
    width, padded = block_width(size), padded_size(size)
    if work is None:
        work = logits_VB.new_empty(padded * rows, dtype=torch.float32)
    weights_PB = work[: padded * rows].view(padded, rows)
    weights_PB[size:] = 0
    torch.sub(logits_VB, logits_VB.amax(0), out=weights_PB[:size])
    if temperature != 1:
        weights_PB[:size].mul_(1 / temperature)
    weights_PB[:size].exp_()
    return weights_PB.view(-1, width, rows)


def _invert(weights_KWB: Tensor, sums_KB: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B,) where the cumulative weight passes uniform times total, and the totals (B,), float64."""
    width, rows = weights_KWB.shape[1:]
    ends_KB = sums_KB.cumsum(0)
    total_B = ends_KB[-1]
    threshold_B = uniform_B.double() * total_B
    block_1B = (ends_KB <= threshold_B).sum(0, keepdim=True)
    begin_1B = ends_KB.gather(0, block_1B) - sums_KB.gather(0, block_1B)
    block_B = block_1B.squeeze(0)
    inside_BW = weights_KWB[block_B, :, torch.arange(rows, device=block_B.device)].double().cumsum(1)
    # the two sums of a block may differ in the last bit: the threshold must lie below the weight of the block's tokens
    below_B = torch.nextafter(inside_BW[:, -1], torch.zeros_like(total_B))
    left_B = torch.minimum((threshold_B - begin_1B.squeeze(0)).clamp(min=0), below_B)
    token_B = (inside_BW <= left_B.unsqueeze(1)).sum(1)
    return block_B * width + token_B, total_B
