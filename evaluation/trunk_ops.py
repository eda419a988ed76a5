"""Operations of a Llama-like layer with backward passes of their own: fewer passes over memory than autograd's.

On two cores (Xeon with AMX, width 256) matrix products are two thirds of a forward and backward pass in float32 and less than
half of it in bf16; the rest goes over activations, again and again. Where there are kernels of our own (`launch/native`) they
do it in one pass. Norms, rotary embeddings and, on a CPU, the attention of rows of up to `LONGEST` columns are in float32
whatever comes in; other rows take PyTorch's attention in the type that comes in.

Shapes: C tokens, E width; b rows of S columns, H query heads, J key-value heads, G = H / J, D head size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from launch.attention import LONGEST
from launch.native import ops as native


@dataclass(frozen=True)
class Layout:
    """Where tokens that are packed one after the other stand in padded rows."""

    count: int
    columns: int
    index_C: Tensor | None
    """Places in the flattened (b * S), of each row the first ones; None when every place is taken."""

    @functools.cached_property
    def starts(self) -> Tensor:
        """Where each row's tokens begin among the packed ones, and where the last one's end: (b + 1,)."""
        begin = torch.arange(0, (self.count + 1) * self.columns, self.columns)
        return begin if self.index_C is None else torch.searchsorted(self.index_C, begin)

    def spread(self, packed_CX: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        """(C, heads * D) -> (b, heads, S, D), contiguous, 0 where there is no token."""
        if self.index_C is not None:
            padded_PX = packed_CX.new_zeros(self.count * self.columns, packed_CX.shape[1])
            packed_CX = padded_PX.index_copy_(0, self.index_C, packed_CX)
        by_row = packed_CX.view(self.count, self.columns, heads, -1)
        shape = (self.count, heads, self.columns, by_row.shape[-1])
        return torch.empty(shape, dtype=dtype, device=packed_CX.device).copy_(by_row.transpose(1, 2))

    def join(self, by_head: Tensor, dtype: torch.dtype) -> Tensor:
        """What undoes `spread`, and is its adjoint: (b, heads, S, D) -> (C, heads * D)."""
        rows, heads, columns, size = by_head.shape
        by_row = torch.empty(rows, columns, heads, size, dtype=dtype, device=by_head.device)
        padded_PX = by_row.copy_(by_head.transpose(1, 2)).view(rows * columns, heads * size)
        return padded_PX if self.index_C is None else padded_PX.index_select(0, self.index_C)


def add_norm(
    x_CE: Tensor, delta_CE: Tensor | None, weight_E: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The residual stream x + delta (x itself without delta), and `rms_norm` of it."""
    given = [x for x in (x_CE, weight_E, delta_CE) if x is not None]
    if x_CE.dtype == weight_E.dtype == torch.float32 and dtype in native.SUFFIX and native.takes(*given):
        return _AddNorm.apply(x_CE, delta_CE, weight_E, eps, dtype)
    total_CE = x_CE if delta_CE is None else x_CE + delta_CE
    return total_CE, rms_norm(total_CE, weight_E, eps, dtype)


class _AddNorm(torch.autograd.Function):
    """`_RMSNorm` of a sum; the sum's own gradient is added on the way."""

    @staticmethod
    def forward(
        ctx: Any, x_CE: Tensor, delta_CE: Tensor | None, weight_E: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        total_CE, normal_CE, inverse_C = native.add_norm(x_CE, delta_CE, weight_E, eps, dtype)
        ctx.save_for_backward(total_CE, weight_E, inverse_C)
        ctx.delta_dtype = None if delta_CE is None else delta_CE.dtype
        return total_CE, normal_CE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total_CE: Tensor, of_normal_CE: Tensor) -> tuple[Tensor | None, ...]:
        total_CE, weight_E, inverse_C = ctx.saved_tensors
        of_x_CE, of_delta_CE, of_weight_E = native.add_norm_backward(
            of_normal_CE.contiguous(),
            of_total_CE.contiguous(),
            total_CE,
            weight_E,
            inverse_C,
            ctx.delta_dtype or torch.float32,
            ctx.needs_input_grad[2],
        )
        return of_x_CE, None if ctx.delta_dtype is None else of_delta_CE, of_weight_E, None, None


def gated(gate_CX: Tensor, up_CX: Tensor) -> Tensor:
    """SwiGLU's silu(gate) * up (Shazeer 2020, arXiv 2002.05202)."""
    if gate_CX.dtype == up_CX.dtype and native.takes(gate_CX, up_CX):
        return _Gate.apply(gate_CX, up_CX)
    return F.silu(gate_CX) * up_CX


class _Gate(torch.autograd.Function):
    """With s = sigmoid(x): d/dx = up s (1 + x (1 - s)), d/dup = x s. The sigmoid is made again, which is less than to read it."""

    @staticmethod
    def forward(ctx: Any, gate_CX: Tensor, up_CX: Tensor) -> Tensor:
        ctx.save_for_backward(gate_CX, up_CX)
        return native.gate(gate_CX, up_CX)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_CX: Tensor) -> tuple[Tensor, Tensor]:
        return native.gate_backward(slope_CX.contiguous(), *ctx.saved_tensors)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """weight x / sqrt(mean(x²) + eps) over the last dimension, in `dtype` (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    if x.device.type != "cpu":  # PyTorch has one kernel for it there
        return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(dtype)
    return _RMSNorm.apply(x, weight, eps, dtype)


class _RMSNorm(torch.autograd.Function):
    """With n = x / root mean square and g = weight * dy: dx = (g - n mean(g n)) / root mean square, dweight = sum(dy n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        wide, slope = weight.float(), slope.float()
        normal = x.float() * inverse
        product = slope * normal
        with torch.autocast(x.device.type, enabled=False):
            mean = (product @ wide).div_(x.shape[-1]).unsqueeze(-1)
        of_weight = product.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        of_x = torch.mul(slope, wide, out=product).addcmul_(normal, mean, value=-1).mul_(inverse)
        return of_x.to(x.dtype), of_weight, None, None


def attend(
    q_CX: Tensor, k_CX: Tensor, v_CX: Tensor, cos_SD: Tensor, sin_SD: Tensor, scale: float, layout: Layout
) -> Tensor:
    """Causal attention within rows, after rotary embedding: q (C, H D), k and v (C, J D) -> (C, H D) in v's type.

    `cos_SD`, `sin_SD`: (S, D / 2), float32, of the columns' positions.
    """
    short = layout.columns <= LONGEST and v_CX.device.type == "cpu"
    if short and native.takes(q_CX, k_CX, v_CX):
        wide = torch.promote_types(q_CX.dtype, v_CX.dtype)  # norms of queries and keys have widened them
        packed = (x_CX.to(wide) for x_CX in (q_CX, k_CX, v_CX))
        return _NativeShortRows.apply(*packed, cos_SD, sin_SD, scale, layout.starts).to(v_CX.dtype)
    if short:
        return _ShortRows.apply(q_CX, k_CX, v_CX, cos_SD, sin_SD, scale, layout)
    q, k = (_Rotate.apply(x_CX, cos_SD, sin_SD, v_CX.dtype, layout) for x_CX in (q_CX, k_CX))
    v = _Spread.apply(v_CX, q.shape[-1], layout)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] > k.shape[1])
    return _Join.apply(mixed, layout)


class _ShortRows(torch.autograd.Function):
    """Softmax and products of all pairs, in float32: launch/attention.py says why, for the model's own forward pass."""

    @staticmethod
    def forward(
        ctx: Any, q_CX: Tensor, k_CX: Tensor, v_CX: Tensor, cos_SD: Tensor, sin_SD: Tensor, scale: float, layout: Layout
    ) -> Tensor:
        size, columns = 2 * cos_SD.shape[1], layout.columns
        kv_heads = k_CX.shape[1] // size
        batch = (layout.count * kv_heads, -1, size)
        q = layout.spread(q_CX, q_CX.shape[1] // size, torch.float32)
        q = rotate(q, cos_SD * scale, sin_SD * scale).view(batch)
        k = rotate(layout.spread(k_CX, kv_heads, torch.float32), cos_SD, sin_SD).view(batch)
        v = layout.spread(v_CX, kv_heads, torch.float32).view(batch)
        scores = torch.bmm(q, k.transpose(1, 2))
        scores.view(-1, columns, columns).add_(causal_mask(columns))
        shares = torch.softmax(scores, -1)
        ctx.save_for_backward(q, k, v, shares, cos_SD, sin_SD)
        ctx.scale, ctx.layout, ctx.dtypes = scale, layout, (q_CX.dtype, k_CX.dtype, v_CX.dtype)
        mixed = torch.bmm(shares, v).view(layout.count, -1, columns, size)
        return layout.join(mixed, v_CX.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_CX: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares, cos_SD, sin_SD = ctx.saved_tensors
        layout, scale, size = ctx.layout, ctx.scale, q.shape[-1]
        by_head = (layout.count, -1, layout.columns, size)
        slope = layout.spread(slope_CX, slope_CX.shape[1] // size, torch.float32).view(q.shape)
        with torch.autocast(slope.device.type, enabled=False):
            of_v = torch.bmm(shares.transpose(1, 2), slope)
            of_shares = torch.bmm(slope, v.transpose(1, 2))
            # what autograd itself calls: one pass in place of four
            of_scores = torch._softmax_backward_data(of_shares, shares, -1, torch.float32)
            of_q, of_k = torch.bmm(of_scores, k), torch.bmm(of_scores.transpose(1, 2), q)
        of_q = rotate(of_q.view(by_head), cos_SD * scale, sin_SD * -scale)
        of_k = rotate(of_k.view(by_head), cos_SD, -sin_SD)
        slopes = (of_q, of_k, of_v.view(by_head))
        return *(layout.join(x, dtype) for x, dtype in zip(slopes, ctx.dtypes, strict=True)), None, None, None, None


class _NativeShortRows(torch.autograd.Function):
    """The same, of tokens alone: nothing is padded, and what a query does not see is not multiplied. Shares are made again."""

    @staticmethod
    def forward(
        ctx: Any, q_CX: Tensor, k_CX: Tensor, v_CX: Tensor, cos_SD: Tensor, sin_SD: Tensor, scale: float, starts: Tensor
    ) -> Tensor:
        mixed_CX, softmax_CH2 = native.attend(q_CX, k_CX, v_CX, cos_SD, sin_SD, scale, starts)
        ctx.save_for_backward(q_CX, k_CX, v_CX, cos_SD, sin_SD, starts, softmax_CH2)
        ctx.scale = scale
        return mixed_CX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_CX: Tensor) -> tuple[Tensor | None, ...]:
        q_CX, k_CX, v_CX, cos_SD, sin_SD, starts, softmax_CH2 = ctx.saved_tensors
        place = (cos_SD, sin_SD, ctx.scale, starts, softmax_CH2)
        grads = native.attend_backward(slope_CX.contiguous(), q_CX, k_CX, v_CX, *place)
        return *grads, None, None, None, None


@functools.lru_cache(maxsize=8)
def causal_mask(columns: int) -> Tensor:
    """What is added to the scores of pairs, (S, S): minus infinity where the key stands behind the query."""
    return torch.full((columns, columns), -torch.inf, device="cpu").triu_(1)


def rotate(x: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
    """Rotary embedding of heads (.., S, D), new: the pairs are (i, i + D / 2). With -sin it turns back (Su et al. 2021)."""
    half = x.shape[-1] // 2
    first, second, turned = x[..., :half], x[..., half:], torch.empty_like(x)
    torch.mul(first, cos_SD, out=turned[..., :half]).addcmul_(second, sin_SD, value=-1)
    torch.mul(second, cos_SD, out=turned[..., half:]).addcmul_(first, sin_SD)
    return turned


class _Rotate(torch.autograd.Function):
    """`Layout.spread` and `rotate`, in float32, then in `dtype`."""

    @staticmethod
    def forward(ctx: Any, x_CX: Tensor, cos_SD: Tensor, sin_SD: Tensor, dtype: torch.dtype, layout: Layout) -> Tensor:
        ctx.save_for_backward(cos_SD, sin_SD)
        ctx.layout, ctx.dtype = layout, x_CX.dtype
        heads = x_CX.shape[1] // (2 * cos_SD.shape[1])
        return rotate(layout.spread(x_CX, heads, torch.float32), cos_SD, sin_SD).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        cos_SD, sin_SD = ctx.saved_tensors
        return ctx.layout.join(rotate(slope.float(), cos_SD, -sin_SD), ctx.dtype), None, None, None, None


class _Spread(torch.autograd.Function):
    """`Layout.spread` to heads of a size."""

    @staticmethod
    def forward(ctx: Any, x_CX: Tensor, size: int, layout: Layout) -> Tensor:
        ctx.layout = layout
        return layout.spread(x_CX, x_CX.shape[1] // size, x_CX.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.layout.join(slope, slope.dtype), None, None


class _Join(torch.autograd.Function):
    """`Layout.join`."""

    @staticmethod
    def forward(ctx: Any, by_head: Tensor, layout: Layout) -> Tensor:
        ctx.layout, ctx.heads = layout, by_head.shape[1]
        return layout.join(by_head, by_head.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_CX: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.layout.spread(slope_CX, ctx.heads, slope_CX.dtype), None
