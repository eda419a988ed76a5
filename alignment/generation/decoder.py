"""Decoding a batch with a Llama-like model, token by token, with a static cache of keys and values.

Shapes as in network.py. The cache: prompts end at the same column, so every row writes its next token to the same one.
A row's positions count from its first real token (checklist item 3); what stands before it in its cache is masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from alignment.generation.network import Cache, Network, attend_one, make_cache
from alignment.generation.prompts import left_pad
from alignment.generation.weights import Weights

PREFILL_TOKENS = 1024  # of one forward pass over prompts: its activations stay in the cache of the processor
GPU_PREFILL_TOKENS = 8192  # there each pass costs its launches
BF16_BLOCK = 32


class Decoder(Network):
    """The state of one batch: cache, and for each row where it begins. Rows are numbered 0 to `rows` - 1."""

    def __init__(
        self, weights: Weights, prompts: Sequence[Sequence[int]], new_tokens: int, cache: Cache | None = None
    ) -> None:
        """`cache`: an empty one with room for the batch; one of its size is made when not given."""
        super().__init__(weights)
        self.prompts, self.rows = prompts, len(prompts)
        device = weights.embedding.device
        lengths = [len(p) for p in prompts]
        self.column = max(lengths)
        """The next column to write."""
        self.starts_N = torch.tensor([self.column - n for n in lengths], device=device)
        self.first = 0
        """No row has a token before this column."""
        # oneDNN compiles a bf16 product anew for each shape (milliseconds): there, attend to whole blocks of columns
        self.block = 1 if weights.head.dtype == torch.float32 else BF16_BLOCK
        width = -(-(self.column + new_tokens) // self.block) * self.block
        cache = cache or self._make_cache(width)
        self.keys, self.values = cache.keys[:, : self.rows], cache.values[:, : self.rows]
        self.cos, self.sin = cache.cos, cache.sin
        self.mask_N1S = _start_mask(self.starts_N, width, self.keys.dtype)
        if self.mask_N1S is None and self.block > 1:
            self.mask_N1S = self.keys.new_zeros(self.rows, 1, width)
        if self.block > 1:
            self.mask_N1S[:, :, self.column :] = -torch.inf

    def _make_cache(self, width: int) -> Cache:
        return make_cache(self.weights, self.rows, width)

    # ------------------------------------------------------------------------------------ prompts

    def prefill(self) -> Tensor:
        """Read the prompts, equal ones once, and give the logits of their next tokens: (V, N)."""
        distinct = list(dict.fromkeys(map(tuple, self.prompts)))
        number = {prompt: i for i, prompt in enumerate(distinct)}
        room = PREFILL_TOKENS if self.starts_N.device.type == "cpu" else GPU_PREFILL_TOKENS
        last, start = [], 0
        while start < len(distinct):
            stop = self._chunk_end(distinct, start, room)
            last.append(self._prefill_rows(distinct[start:stop], start))
            start = stop
        hidden_EN = torch.cat(last, 1)
        if len(distinct) < self.rows:
            source_N = torch.tensor([number[tuple(p)] for p in self.prompts], device=self.starts_N.device)
            for cache in (*self.keys, *self.values):
                cache[:, :, : self.column] = cache[source_N, :, : self.column]
            hidden_EN = hidden_EN[:, source_N]
        return self.logits(hidden_EN)

    @staticmethod
    def _chunk_end(prompts: list[tuple[int, ...]], start: int, room: int) -> int:
        """So many prompts (at least one) that with padding they have at most `room` tokens."""
        stop, longest = start, 0
        while stop < len(prompts):
            longest = max(longest, len(prompts[stop]))
            if stop > start and longest * (stop + 1 - start) > room:
                break
            stop += 1
        return stop

    def _prefill_rows(self, prompts: list[tuple[int, ...]], row: int) -> Tensor:
        """Fill the cache of the rows from `row` on; hidden states of the last tokens, (E, rows)."""
        ids_NT, mask_NT = left_pad(prompts, 0, self.starts_N.device)
        rows, length = ids_NT.shape
        start_N = length - mask_NT.sum(1)
        positions_C = (torch.arange(length, device=ids_NT.device) - start_N.unsqueeze(1)).clamp(min=0).flatten()
        pass_ = _Prefill(self, slice(row, row + rows), length, start_N)
        x_EC = self.embed(ids_NT.flatten())
        rotation = self.cos[:, positions_C], self.sin[:, positions_C]
        for number, layer in enumerate(self.weights.layers):
            x_EC = self.layer(layer, number, x_EC, rotation, pass_)
        return x_EC

    # ------------------------------------------------------------------------------------ tokens

    def step(self, tokens_N: Tensor) -> Tensor:
        """Append a token to each row; logits of the next, (V, N). They are overwritten by the next call."""
        x_EN = self.embed(tokens_N)
        positions_N = self.column - self.starts_N
        rotation = self.cos[:, positions_N], self.sin[:, positions_N]
        attention = _Decode(self)
        for number, layer in enumerate(self.weights.layers):
            x_EN = self.layer(layer, number, x_EN, rotation, attention)
        self.column += 1
        return self.logits(x_EN)

    # ------------------------------------------------------------------------------------ finished rows

    def keep(self, done_N: Tensor, size: int) -> Tensor:
        """Make the batch smaller, without `done_N` first; the numbers (before the call) of its rows 0 to size - 1.

        Rows from the end move into the gaps, so that no more are copied than were finished.
        """
        order_N = torch.arange(size, device=done_N.device)
        movers = (~done_N[size:]).nonzero().squeeze(1) + size
        gaps = done_N[:size].nonzero().squeeze(1)[: len(movers)]
        order_N[gaps] = movers
        written = slice(self.first, self.column)
        for cache in (*self.keys, *self.values):
            cache[gaps, :, written] = cache[movers, :, written]
        self.starts_N, self.rows = self.starts_N[order_N], size
        if self.mask_N1S is not None:
            self.mask_N1S = self.mask_N1S[order_N]
        self.first = int(self.starts_N.min())
        return order_N


class _Decode:
    """Attention of one new token a row, over what is written of the cache."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, block = decoder, decoder.block
        self.live = slice(decoder.first // block * block, (decoder.column // block + 1) * block)
        self.mask = decoder.mask_N1S
        if self.mask is not None:
            self.mask[:, :, decoder.column] = 0
            self.mask = self.mask[:, :, self.live].repeat_interleave(decoder.weights.kv_heads, 0)

    def attend(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (H, D, N) -> (H D, N), after key and value are written."""
        decoder = self.decoder
        keys, values = decoder.keys[number, : decoder.rows], decoder.values[number, : decoder.rows]
        keys[:, :, decoder.column] = k.permute(2, 0, 1)
        values[:, :, decoder.column] = v.permute(2, 0, 1)
        return attend_one(q, keys[:, :, self.live], values[:, :, self.live], self.mask)


class _Prefill:
    """Attention over prompts: causal, from the first real token of each."""

    def __init__(self, decoder: Decoder, rows: slice, length: int, start_N: Tensor) -> None:
        self.decoder, self.rows = decoder, rows
        self.stop = max(len(p) for p in decoder.prompts)
        self.first = self.stop - length
        self.mask = self.last_mask = None
        mask_N1T = _start_mask(start_N, length, decoder.keys.dtype)
        if mask_N1T is not None:
            self.last_mask = mask_N1T.repeat_interleave(decoder.weights.kv_heads, 0)
            column = torch.arange(length, device=start_N.device)
            causal_TT = column <= column.unsqueeze(1)
            itself_TT = column == column.unsqueeze(1)  # else a row of padding has nothing to attend to, and is NaN
            self.mask = ((column >= start_N.view(-1, 1, 1, 1)) & causal_TT) | itself_TT

    def attend(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (H, D, N T) -> (H D, N T), or (H D, N) of the last tokens in the last layer, of which no more is used."""
        decoder, rows = self.decoder, self.rows
        count = rows.stop - rows.start
        q, k, v = (t.unflatten(2, (count, -1)).permute(2, 0, 3, 1) for t in (q, k, v))
        keys, values = (c[number, rows, :, self.first : self.stop] for c in (decoder.keys, decoder.values))
        keys.copy_(k), values.copy_(v)
        if number == len(decoder.weights.layers) - 1:
            return attend_one(q[:, :, -1].permute(1, 2, 0), keys, values, self.last_mask)
        # contiguous, or scaled_dot_product_attention takes its slow way; with the strides of dimensions of size 1, too, which
        # contiguous() leaves as they are: kernels of a GPU refuse them
        dtype = torch.float32 if q.device.type == "cpu" else keys.dtype
        q, k, v = (torch.empty(t.shape, dtype=dtype, device=t.device).copy_(t) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask, is_causal=self.mask is None, scale=1.0, enable_gqa=q.shape[1] > k.shape[1]
        )
        return mixed.permute(1, 3, 0, 2).reshape(-1, q.shape[0] * q.shape[2])


def _start_mask(start_N: Tensor, width: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores, (N, 1, width): minus infinity before a row's first token. None when all begin at 0."""
    if not start_N.any():
        return None
    before_NS = torch.arange(width, device=start_N.device) < start_N.unsqueeze(1)
    mask_NS = torch.zeros(before_NS.shape, dtype=dtype, device=start_N.device).masked_fill_(before_NS, -torch.inf)
    return mask_NS.unsqueeze(1)
