"""The layers of a Llama-like model as a decoder runs them, and the cache of keys and values.

Activations stand feature first, one column for each token: (features, columns). With few columns the product
weights @ activations is 1.4 times faster on the CPU than the usual activations @ weights^T, and halves of a head (rotary
embedding), gate and up are contiguous slices.

Shapes: E width, H query heads, J key-value heads, G = H / J, D head size, L layers, N rows of the batch,
S cache columns, C = N x (tokens of a row) columns of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from alignment.generation.weights import LayerWeights, Weights
from alignment.scratch import Scratch
from launch.native import ops as native


class Attention(Protocol):
    """How the tokens of a pass attend to the cache, after their keys and values are written to it."""

    def attend(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Layer `number`: q (H, D, C), k and v (J, D, C) -> (H D, C)."""
        ...


class Network:
    """Embedding, layers and head over a model's weights."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.scratch = Scratch(weights.embedding.device)

    def embed(self, tokens_C: Tensor) -> Tensor:
        """(E, C), float32."""
        return F.embedding(tokens_C, self.weights.embedding).t().float().contiguous()

    def layer(
        self, w: LayerWeights, number: int, x: Tensor, rotation: tuple[Tensor, Tensor], attention: Attention
    ) -> Tensor:
        """x (E, C), overwritten -> (E, C). `rotation`: cosines and sines of the columns' positions, (D / 2, C) each."""
        sizes, heads = self.weights, self.weights.heads + self.weights.kv_heads
        qkv = self._project("qkv", w.qkv, _normalise(x, w.norm, sizes.eps), w.qkv_bias)
        qkv = qkv.view(heads + sizes.kv_heads, sizes.head_dim, -1)
        q, k = qkv[: sizes.heads], qkv[sizes.heads : heads]
        if w.q_norm is not None and w.k_norm is not None:
            q, k = _normalise(q, w.q_norm, sizes.eps), _normalise(k, w.k_norm, sizes.eps)
            q, k = _rotate(q, *rotation), _rotate(k, *rotation)
        else:
            rotated = _rotate(qkv[:heads], *rotation)
            q, k = rotated[: sizes.heads], rotated[sizes.heads :]
        mixed = attention.attend(number, q.mul_(sizes.scale), k, qkv[heads:])
        if mixed.shape[1] < x.shape[1]:  # the last layer of a prefill goes on with the last tokens alone
            x = x.view(x.shape[0], mixed.shape[1], -1)[:, :, -1].contiguous()
        x = _add_project(x, w.out, mixed, w.out_bias)
        gate_up = self._project("gate_up", w.gate_up, _normalise(x, w.mlp_norm, sizes.eps), w.gate_up_bias)
        return _add_project(x, w.down, _gated(*gate_up.chunk(2)), w.down_bias)

    def logits(self, x: Tensor) -> Tensor:
        """(V, C). They are overwritten by the next call."""
        return self._project("logits", self.weights.head, _normalise(x, self.weights.norm, self.weights.eps), None)

    def reserve(self, columns: int) -> None:
        """Take the memory of the large products for up to so many columns: passes of no more never move it."""
        layer = self.weights.layers[0]
        for name, matrix in (("qkv", layer.qkv), ("gate_up", layer.gate_up), ("logits", self.weights.head)):
            self.scratch.take(name, (matrix.shape[0], columns), matrix.dtype)

    def _project(self, name: str, matrix: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        out = self.scratch.take(name, (matrix.shape[0], x.shape[1]), matrix.dtype)
        torch.mm(matrix, x.to(matrix.dtype), out=out)
        return out if bias is None else out.add_(bias)


@dataclass(frozen=True)
class Cache:
    """Keys and values of all layers, and the rotary embedding of all columns."""

    keys: Tensor
    """(L, N, J, S, D), as are `values`; in the dtype of the products."""
    values: Tensor
    cos: Tensor
    """(D / 2, S), as is `sin`: the other half is the same."""
    sin: Tensor


def make_cache(weights: Weights, rows: int, width: int, by_token: bool = False) -> Cache:
    """An empty cache (zeros) for so many rows and columns; with `by_token` the keys of a token are adjacent in memory.

    Else in bf16 the keys of a feature are adjacent in memory: the product with the query is 3 times as fast as it is with
    the keys of a token adjacent, which in float32 is the faster way (1.5 times).
    """
    shape = (len(weights.layers), rows, weights.kv_heads, width, weights.head_dim)
    kind: dict[str, Any] = {"dtype": weights.head.dtype, "device": weights.head.device}
    values = torch.zeros(shape, **kind)
    if by_token or values.dtype == torch.float32:
        keys = torch.zeros(shape, **kind)
    else:
        keys = torch.zeros((*shape[:3], shape[4], shape[3]), **kind).transpose(3, 4)
    return Cache(keys, values, *_rotation_table(weights, width))


def _rotation_table(weights: Weights, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the model's own rotary embedding: (D / 2, width) each."""
    device = weights.embedding.device
    positions = torch.arange(width, device=device).unsqueeze(0)
    tables = weights.rotary(torch.empty(0, dtype=torch.float32, device=device), positions)
    cos, sin = (t[0, :, : weights.head_dim // 2].t().contiguous() for t in tables)
    return cos, sin


def attend_one(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one query a row, q (H, D, N), over keys and values (N, J, S, D): (H D, N). `mask`: (N J, 1, S), added.

    Plain batched products: scaled_dot_product_attention takes up to 2 times (in bf16 8 times) as long for one query.
    """
    rows, kv_heads = keys.shape[:2]
    query = torch.empty(rows, *q.shape[:2], dtype=keys.dtype, device=q.device).copy_(q.permute(2, 0, 1))
    query = query.view(rows * kv_heads, -1, keys.shape[-1])
    by_head = keys.flatten(0, 1).transpose(1, 2)
    if mask is None:
        scores = torch.bmm(query, by_head)
    else:
        scores = torch.baddbmm(mask, query, by_head)
    # a GPU's kernel is exact inside and rounds at the end, the CPU's is not
    inner = None if scores.is_cuda else torch.float32
    shares = torch.softmax(scores, -1, dtype=inner).to(values.dtype)
    return torch.bmm(shares, values.flatten(0, 1)).view(rows, -1).t()


def _normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of the columns: over the last dimension but one, in float32."""
    if x.is_cuda:
        return _normalise_rows(x, weight, eps)
    if x.dim() == 2 and x.dtype == weight.dtype == torch.float32 and native.takes(x, weight):
        return native.add_norm_columns(x, None, weight, eps, torch.empty_like(x))
    x = x.float()
    scale = x.square().mean(-2, keepdim=True).add_(eps).rsqrt_()
    return (x * scale).mul_(weight)


def _normalise_rows(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same as three kernels in place of six, and a sum over adjacent numbers: what a GPU waits for are launches."""
    return F.rms_norm(x.float().transpose(-2, -1), weight.shape[:1], weight.float().flatten(), eps).transpose(-2, -1)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; what they were is lost."""
    return native.gate(gate, up) if native.takes(gate, up) else F.silu(gate, inplace=True).mul_(up)


def _add_project(x: Tensor, matrix: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    """x + matrix @ y + bias, in place. The residual stream is float32, as under autocast."""
    if matrix.dtype == torch.float32:
        x.addmm_(matrix, y)
    else:
        x.add_(torch.mm(matrix, y.to(matrix.dtype)))
    return x if bias is None else x.add_(bias)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of heads (.., D, C): the pairs are (i, i + D / 2). In float32."""
    half = x.shape[-2] // 2
    first, second = x[..., :half, :], x[..., half:, :]
    if not x.is_cuda:  # a GPU's kernels cast as they read
        first, second = first.float(), second.float()
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    torch.mul(first, cos, out=out[..., :half, :]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:, :]).addcmul_(first, sin)
    return out
