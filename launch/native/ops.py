"""The kernels as functions of tensors. Each checks what the kernel takes for granted: `takes` says whether they can be used.

Shapes: C tokens, E width, X features; H query heads, J key-value heads, D head size; v tokens of a block of the vocabulary.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from launch.native.build import library

SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}


def takes(*tensors: Tensor) -> bool:
    """Whether there are kernels, and these tensors are such as they read: contiguous in the CPU's memory, of known types."""
    known = all(x.device.type == "cpu" and x.dtype in SUFFIX and x.is_contiguous() for x in tensors)
    return known and library() is not None


def _new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory of that type on the CPU, whatever PyTorch's defaults are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def _call(name: str, *arguments: Any) -> None:
    """Tensors are given by their memory (None by null), floats as float32, integers as int64; then the number of threads.

    Types are the callers' care: what may be float32 or bf16 is in the name, all other numbers are float32, places int64.
    """
    converted: list[Any] = []
    for x in arguments:
        if isinstance(x, Tensor):
            if not (x.is_contiguous() and x.device.type == "cpu"):
                raise ValueError(f"{name}: a tensor is not contiguous, or not in the memory of the CPU")
            converted.append(ctypes.c_void_p(x.data_ptr()))
        elif isinstance(x, float):
            converted.append(ctypes.c_float(x))
        else:
            converted.append(ctypes.c_void_p(None) if x is None else ctypes.c_int64(x))
    getattr(library(), name)(*converted, ctypes.c_int(torch.get_num_threads()))


def add_norm(
    x_CE: Tensor, delta_CE: Tensor | None, weight_E: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x + delta (x itself without delta), float32; its RMS norm times the weight, in `dtype`; 1 / root mean square (C,)."""
    rows, width = x_CE.shape
    total_CE = x_CE if delta_CE is None else torch.empty_like(x_CE)
    normal_CE, inverse_C = _new(rows, width, dtype=dtype), _new(rows)
    kind = SUFFIX[dtype if delta_CE is None else delta_CE.dtype]
    _call(
        f"add_norm_{kind}_{SUFFIX[dtype]}",
        x_CE,
        delta_CE,
        total_CE,
        weight_E,
        float(eps),
        normal_CE,
        inverse_C,
        rows,
        width,
    )
    return total_CE, normal_CE, inverse_C


def add_norm_backward(
    of_normal_CE: Tensor,
    of_total_CE: Tensor,
    total_CE: Tensor,
    weight_E: Tensor,
    inverse_C: Tensor,
    delta_dtype: torch.dtype,
    with_weight: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, of delta in its type, and of the weight, from those of `add_norm`'s first two results."""
    rows, width = total_CE.shape
    of_x_CE = torch.empty_like(total_CE)
    of_delta_CE = of_x_CE if delta_dtype == torch.float32 else _new(rows, width, dtype=delta_dtype)
    parts = _new(torch.get_num_threads(), width) if with_weight else None
    _call(
        f"add_norm_backward_{SUFFIX[delta_dtype]}_{SUFFIX[of_normal_CE.dtype]}",
        of_normal_CE,
        of_total_CE,
        total_CE,
        weight_E,
        inverse_C,
        of_x_CE,
        None if of_delta_CE is of_x_CE else of_delta_CE,
        parts,
        rows,
        width,
    )
    return of_x_CE, of_delta_CE, None if parts is None else parts.sum(0)


def gate(x_CX: Tensor, up_CX: Tensor) -> Tensor:
    """x sigmoid(x) up."""
    out_CX = torch.empty_like(x_CX)
    _call(f"gate_{SUFFIX[x_CX.dtype]}", x_CX, up_CX, out_CX, x_CX.numel())
    return out_CX


def gate_backward(slope_CX: Tensor, x_CX: Tensor, up_CX: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and up."""
    of_x_CX, of_up_CX = torch.empty_like(x_CX), torch.empty_like(x_CX)
    _call(f"gate_backward_{SUFFIX[x_CX.dtype]}", slope_CX, x_CX, up_CX, of_x_CX, of_up_CX, x_CX.numel())
    return of_x_CX, of_up_CX


def attend(
    q_CX: Tensor, k_CX: Tensor, v_CX: Tensor, cos_SD: Tensor, sin_SD: Tensor, scale: float, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Causal attention within rows after rotary embedding, (C, H D) in q's type; of each softmax the largest
    score and 1 / sum of exponentials, (C, H, 2), from which the backward pass makes the same shares again.

    Row i is tokens starts[i] to starts[i + 1] - 1, whose places are 0, 1, ..; `cos_SD`, `sin_SD`: (S, D / 2) of places.
    """
    out_CX, heads, sizes = (
        torch.empty_like(q_CX),
        q_CX.shape[1] // (2 * cos_SD.shape[1]),
        _sizes(q_CX, k_CX, cos_SD, starts),
    )
    softmax_CH2 = _new(len(q_CX), heads, 2)
    _call(
        f"attend_{SUFFIX[q_CX.dtype]}",
        q_CX,
        k_CX,
        v_CX,
        cos_SD,
        sin_SD,
        float(scale),
        starts,
        out_CX,
        softmax_CH2,
        *sizes,
    )
    return out_CX, softmax_CH2


def attend_backward(
    slope_CX: Tensor,
    q_CX: Tensor,
    k_CX: Tensor,
    v_CX: Tensor,
    cos_SD: Tensor,
    sin_SD: Tensor,
    scale: float,
    starts: Tensor,
    softmax_CH2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    grads, sizes = [torch.empty_like(x) for x in (q_CX, k_CX, v_CX)], _sizes(q_CX, k_CX, cos_SD, starts)
    given = (slope_CX, q_CX, k_CX, v_CX, cos_SD, sin_SD, float(scale), starts, softmax_CH2)
    _call(f"attend_backward_{SUFFIX[q_CX.dtype]}", *given, *grads, *sizes)
    return grads[0], grads[1], grads[2]


def add_norm_columns(x_EN: Tensor, delta_EN: Tensor | None, weight_E: Tensor, eps: float, out_EN: Tensor) -> Tensor:
    """x += delta, where there is one; then x's RMS norm over each column times the weight, into `out_EN`, which is returned."""
    kind = SUFFIX[out_EN.dtype if delta_EN is None else delta_EN.dtype]
    _call(f"add_norm_columns_{kind}_{SUFFIX[out_EN.dtype]}", x_EN, delta_EN, weight_E, float(eps), out_EN, *x_EN.shape)
    return out_EN


def attend_step(
    qkv_XN: Tensor,
    norms: tuple[Tensor | None, Tensor | None],
    eps: float,
    rotation: tuple[Tensor, Tensor],
    scale: float,
    cache: tuple[Tensor, Tensor],
    starts_N: Tensor,
    column: int,
    out_XN: Tensor,
) -> Tensor:
    """The attention of one new token in each row, into `out_XN` (H D, N), which is returned.

    `qkv_XN`: ((H + 2 J) D, N), before rotary embedding, which is given by cosines and sines (D / 2, N), and before the RMS norms of
    queries and keys where there are any (D,). `cache`: keys and values (N or more, J, S, D); the new ones are written to `column`.
    Row n attends to the columns from starts[n] to it.
    """
    keys, values = cache
    rows, (_, kv_heads, width, size) = qkv_XN.shape[1], keys.shape
    given = (qkv_XN, *norms, float(eps), *rotation, float(scale), keys, values, starts_N, column, width, out_XN)
    _call(f"attend_step_{SUFFIX[qkv_XN.dtype]}", *given, rows, len(out_XN) // size, kv_heads, size)
    return out_XN


def pick(logits_VB: Tensor, temperature: float, uniform_B: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities, (B,) both: `alignment.generation.sampling.pick_tokens`, by blocks of `width` tokens."""
    size, columns = logits_VB.shape
    tokens_B, logprobs_B = _new(columns, dtype=torch.long), _new(columns)
    sums_KB = _new(-(-size // width), columns, dtype=torch.float64)
    uniform_B = None if uniform_B is None else uniform_B.double().contiguous()
    results = (tokens_B, logprobs_B, sums_KB)
    _call(f"pick_{SUFFIX[logits_VB.dtype]}", logits_VB, 1 / temperature, uniform_B, *results, size, columns, width)
    return tokens_B, logprobs_B


def add_block(
    products_Cv: Tensor,
    scale: float,
    targets_C: Tensor,
    first: int,
    target_C: Tensor,
    most_C: Tensor,
    sum_C: Tensor,
    weighted_C: Tensor,
) -> None:
    """Take a block of the logits scale * products, whose first token is `first`, into a running softmax.

    In place, float32: the target's logit when it comes; the largest logit so far; relative to it the sums of exp(l) and exp(l) l.
    """
    running = (target_C, most_C, sum_C, weighted_C)
    _call(
        f"add_block_{SUFFIX[products_Cv.dtype]}",
        products_Cv,
        float(scale),
        targets_C,
        first,
        *running,
        *products_Cv.shape,
    )


def block_slopes(
    products_Cv: Tensor,
    out_Cv: Tensor,
    scale: float,
    targets_C: Tensor,
    first: int,
    normaliser_C: Tensor,
    entropy_C: Tensor,
    slope_C: Tensor | None,
    entropy_slope_C: Tensor | None,
) -> None:
    """The gradient in the logits, into `out_Cv` (which may be the products), given those in log-probabilities and entropies."""
    given = (targets_C, first, normaliser_C, entropy_C, slope_C, entropy_slope_C)
    _call(f"block_slopes_{SUFFIX[products_Cv.dtype]}", products_Cv, out_Cv, float(scale), *given, *products_Cv.shape)


def _sizes(q_CX: Tensor, k_CX: Tensor, cos_SD: Tensor, starts: Tensor) -> tuple[int, int, int, int]:
    size = 2 * cos_SD.shape[1]
    return len(starts) - 1, q_CX.shape[1] // size, k_CX.shape[1] // size, size
