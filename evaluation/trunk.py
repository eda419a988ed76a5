"""The last hidden states of a causal model at the positions that are asked for, and no more of the forward pass than that.

Who reads a response, or one reward at the end of a row, needs a few positions alone. `states_at` runs Llama, Qwen2 and Qwen3
on a CPU so: what stands after the last asked position of a row is not read; padding takes part in attention alone; the last
layer goes on with the asked positions after its attention. The model's linear layers are called as they are, so adapters and
whatever else stands in their place act. Everything else goes through the model's own forward pass, to the same numbers.

Shapes: b rows of S columns, P = b S places, C tokens that are read, N asked positions, E width, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaModel, Qwen2Model, Qwen3Model

from evaluation.batches import equal_slices
from evaluation.trunk_ops import Rows, attend, rms_norm

TRUNKS = (LlamaModel, Qwen2Model, Qwen3Model)
# their frequencies do not depend on the length of the longest sequence in the batch, those of the others do
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
PRECISIONS = (torch.float32, torch.bfloat16)
PASS_TOKENS = 2048
"""Places that are read at once: the activations of more no longer fit into the caches of a processor."""
PACK_BY = 64
"""Products are of multiples of so many tokens: oneDNN compiles one in bf16 for each shape (milliseconds), and keeps it."""
LEAST_GAIN = 1 / 16
"""Share of the places that must be left out for packing to pay."""


def states_at(trunk: Any, tokens_bS: Tensor, wanted_N: Tensor) -> Tensor:
    """Last hidden states (N, E) at places, ascending, of the flattened (b * S) tokens, whose rows are padded on the right.

    A causal model's tokens do not see the padding on their right: no mask, and positions count from 0.
    """
    if not reads_packed(trunk, tokens_bS.device):
        return trunk(tokens_bS, use_cache=False).last_hidden_state.flatten(0, 1)[wanted_N]
    count, columns = tokens_bS.shape
    parts = []
    for rows in equal_slices(count, PASS_TOKENS // columns):
        first, last = torch.searchsorted(wanted_N, torch.tensor([rows.start * columns, rows.stop * columns])).tolist()
        if last > first:
            parts.append(_read_packed(trunk, tokens_bS[rows], wanted_N[first:last] - rows.start * columns))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def reads_packed(trunk: Any, device: torch.device) -> bool:
    """Whether `states_at` computes what this model's forward pass does; if not, the forward pass itself is used."""
    if device.type != "cpu" or type(trunk) not in TRUNKS:
        return False
    config = trunk.config
    layers = [(layer, layer.self_attn, layer.mlp, *_norms(layer)) for layer in trunk.layers]
    own = [trunk, trunk.norm, trunk.rotary_emb, *(module for parts in layers for module in parts)]
    return (
        is_plain(config)
        and config._attn_implementation == "sdpa"
        and not (trunk.training and trunk.gradient_checkpointing)
        and not any(attention.training and attention.attention_dropout for _, attention, *_ in layers)
        and not any(_is_changed(module) for module in own)
        # one without elements is one that ZeRO-3 has spread over the ranks
        and all(norm.weight.dtype in PRECISIONS and norm.weight.numel() for norm in own if _is_norm(norm))
    )


def is_plain(config: Any) -> bool:
    """Whether the layers of a model of these kinds compute what is written out here, by its config."""
    return (
        config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in ROPE_TYPES
        and "sliding_attention" not in (getattr(config, "layer_types", None) or ())
    )


def _norms(layer: Any) -> list[nn.Module]:
    named = (layer.input_layernorm, layer.post_attention_layernorm, *(_head_norms(layer.self_attn) or ()))
    return list(named)


def _head_norms(attention: Any) -> tuple[Any, Any] | None:
    """Those of queries and keys, which Qwen3 has."""
    return (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm")


def _is_changed(module: nn.Module) -> bool:
    """Hooked, or with another forward pass or class than its model's: it may do anything."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooked) or "forward" in vars(module) or not type(module).__module__.startswith("transformers.models.")


def _read_packed(trunk: Any, tokens_bS: Tensor, wanted_N: Tensor) -> Tensor:
    rows, place_N = _pack(tokens_bS, wanted_N)
    place_N = F.pad(place_N, (0, -len(place_N) % PACK_BY))  # by the first place, again and again
    tokens_C = tokens_bS.flatten() if rows.index_C is None else tokens_bS.flatten()[rows.index_C]
    x_CE = trunk.embed_tokens(tokens_C)
    positions_1S = torch.arange(rows.columns, device=x_CE.device).unsqueeze(0)
    tables = trunk.rotary_emb(torch.empty(0, device=x_CE.device), positions_1S)
    cos_SD, sin_SD = (table[0, :, : table.shape[-1] // 2].contiguous() for table in tables)
    eps = trunk.config.rms_norm_eps
    for number, layer in enumerate(trunk.layers):
        mixed_CX = _attention(layer.self_attn, _normalise(layer.input_layernorm, x_CE, eps), cos_SD, sin_SD, eps, rows)
        if number == len(trunk.layers) - 1:
            mixed_CX, x_CE = mixed_CX.index_select(0, place_N), x_CE.index_select(0, place_N)
        x_CE = x_CE + layer.self_attn.o_proj(mixed_CX)
        normal_CE, mlp = _normalise(layer.post_attention_layernorm, x_CE, eps), layer.mlp
        x_CE = x_CE + mlp.down_proj(F.silu(mlp.gate_proj(normal_CE)) * mlp.up_proj(normal_CE))
    normal_NE = rms_norm(x_CE, trunk.norm.weight, eps, torch.promote_types(x_CE.dtype, trunk.norm.weight.dtype))
    return normal_NE[: len(wanted_N)]


def _pack(tokens_bS: Tensor, wanted_N: Tensor) -> tuple[Rows, Tensor]:
    """Which places are read, and where among them the asked ones are.

    Places after the last asked one of each row are left out, but for some that make C a multiple of PACK_BY.
    """
    count, columns = tokens_bS.shape
    row_N, column_N = wanted_N // columns, wanted_N % columns
    length_b = torch.zeros(count, dtype=torch.long, device=wanted_N.device)
    length_b.scatter_reduce_(0, row_N, column_N + 1, "amax")
    read_P = (torch.arange(columns, device=wanted_N.device) < length_b.unsqueeze(1)).flatten()
    left_out = (~read_P).nonzero().squeeze(1)
    filler = -(len(read_P) - len(left_out)) % PACK_BY
    if len(left_out) - filler < LEAST_GAIN * len(read_P):
        return Rows(count, columns, None), wanted_N
    read_P[left_out[:filler]] = True
    return Rows(count, columns, read_P.nonzero().squeeze(1)), (read_P.cumsum(0) - 1)[wanted_N]


def _attention(attention: Any, normal_CE: Tensor, cos_SD: Tensor, sin_SD: Tensor, eps: float, rows: Rows) -> Tensor:
    """What the heads of a layer gather, (C, H D): before its output projection."""
    q_CX, k_CX, v_CX = attention.q_proj(normal_CE), attention.k_proj(normal_CE), attention.v_proj(normal_CE)
    norms = _head_norms(attention)
    if norms is not None:
        shape = (-1, attention.head_dim)
        q_CX, k_CX = (
            _normalise(norm, x_CX.unflatten(1, shape), eps, torch.float32).flatten(1)
            for norm, x_CX in zip(norms, (q_CX, k_CX), strict=True)
        )
    with torch.autocast(normal_CE.device.type, enabled=False):
        return attend(q_CX, k_CX, v_CX, cos_SD, sin_SD, attention.scaling, rows)


def _normalise(norm: Any, x: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """In the type in which the next product runs, unless another is given."""
    device = x.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else norm.weight.dtype
    return rms_norm(x, norm.weight, eps, dtype or product)
