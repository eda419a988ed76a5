"""The last hidden states of a causal model at the positions that are asked for, and no more of the forward pass than that.

Who reads a response, or one reward at the end of a row, needs a few positions alone. `states_at` runs Llama, Qwen2 and Qwen3
on a CPU so: what stands after the last asked position of a row is left out, but for some places that round shapes; padding
takes part in attention alone; the last layer goes on with the asked positions after its attention. Linear layers are called
as modules, (tokens, features) at a time, so adapters act, and whatever else treats each token alone. Everything else goes
through the model's own forward pass, to the same numbers up to rounding.

Shapes: b rows of S columns, P = b S places, C tokens that are read, N asked positions (K with those that fill up), E width,
X features, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaModel, Qwen2Model, Qwen3Model
from transformers.activations import ACT2FN

from evaluation.batches import equal_slices
from evaluation.trunk_ops import Layout, add_norm, attend, gated, rms_norm

TRUNKS = (LlamaModel, Qwen2Model, Qwen3Model)
SILU = type(ACT2FN["silu"])
# their frequencies do not depend on the length of the longest sequence in the batch, those of the others do
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
PRECISIONS = (torch.float32, torch.bfloat16)
TOKENS_PER_PASS, TOKENS_PER_FEATURE = 2048, 8
"""Places that are read at once: so many, or for each feature of the width where that is more. On two cores 6,144 places of
width 256 are read in 0.93 (fp32) and 0.70 (bf16) of the time in four passes. Of a wide model each pass has copies of large weights."""
COLUMNS_BY = 16
LEAST_GAIN = 1 / 16
"""Share of the places that must be left out for packing to pay."""


def states_at(trunk: Any, tokens_bS: Tensor, wanted_N: Tensor) -> Tensor:
    """Last hidden states (N, E) at places, ascending, of the flattened (b * S) tokens, whose rows are padded on the right.

    A causal model's tokens do not see the padding on their right: no mask, and positions count from 0.
    """
    if not len(wanted_N) or not reads_packed(trunk, tokens_bS.device):
        return trunk(tokens_bS, use_cache=False).last_hidden_state.flatten(0, 1)[wanted_N]
    assert (wanted_N.diff() > 0).all(), "places must ascend"
    count, columns = tokens_bS.shape
    most = max(TOKENS_PER_PASS, TOKENS_PER_FEATURE * trunk.config.hidden_size)
    parts = []
    for rows in equal_slices(count, most // columns):
        first, last = torch.searchsorted(wanted_N, torch.tensor([rows.start * columns, rows.stop * columns])).tolist()
        if last > first:
            parts.append(_read_packed(trunk, tokens_bS[rows], wanted_N[first:last] - rows.start * columns))
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def reads_packed(trunk: Any, device: torch.device) -> bool:
    """Whether `states_at` computes what this model's forward pass does; if not, the forward pass itself is used."""
    return device.type == "cpu" and is_written_out(trunk)


def is_written_out(trunk: Any) -> bool:
    """Whether `read_rows` computes what this model's forward pass does."""
    if type(trunk) not in TRUNKS:
        return False
    layers = [(layer, layer.self_attn, layer.mlp, *_norms(layer)) for layer in _layers(trunk)]
    norms = [trunk.norm, *(norm for _, _, _, *own in layers for norm in own)]
    own = [trunk, trunk.norm, trunk.rotary_emb, *(module for parts in layers for module in parts)]
    return (
        is_plain(trunk.config)
        and trunk.config._attn_implementation == "sdpa"
        and not (trunk.training and trunk.gradient_checkpointing)
        and all(attention.is_causal for _, attention, *_ in layers)
        and not any(attention.training and attention.attention_dropout for _, attention, *_ in layers)
        and all(type(mlp.act_fn) is SILU and not is_hooked(mlp.act_fn) for _, _, mlp, *_ in layers)
        and not any(is_hooked(module) or not _is_of_transformers(module) for module in own)
        and all(norm.weight.dtype in PRECISIONS for norm in norms)
    )


def is_plain(config: Any) -> bool:
    """Whether a Llama, Qwen2 or Qwen3 is by its config what code that writes their layers out takes for granted."""
    rope = config.rope_parameters
    return (
        config.hidden_act == "silu"
        and rope["rope_type"] in ROPE_TYPES
        and rope.get("partial_rotary_factor", 1) == 1
        and "sliding_attention" not in (getattr(config, "layer_types", None) or ())
        and getattr(config, "is_causal", True)
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether something hangs on a module (ZeRO-3 does) that may change what it returns, or it has another `forward`.

    Not the hooks that transformers leaves behind when it was once asked for all hidden states.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    names = [getattr(hook, "__name__", "") for by_id in hooks for hook in by_id.values()]
    return any(name != "output_capturing_hook" for name in names) or "forward" in vars(module)


def _is_of_transformers(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.models.")


def _layers(trunk: Any) -> Any:
    return trunk.layers[: trunk.config.num_hidden_layers]


def _norms(layer: Any) -> list[nn.Module]:
    return [layer.input_layernorm, layer.post_attention_layernorm, *_head_norms(layer.self_attn)]


def _head_norms(attention: Any) -> list[nn.Module]:
    """Those of queries and keys, which Qwen3 has."""
    return [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []


def _read_packed(trunk: Any, tokens_bS: Tensor, wanted_N: Tensor) -> Tensor:
    tokens_bS, wanted_N = _cut_columns(tokens_bS, wanted_N)
    dtype = product_dtype(trunk.norm.weight)
    layout, place_K = _pack(tokens_bS, wanted_N, fill_by(dtype))
    tokens_C = tokens_bS.flatten() if layout.index_C is None else tokens_bS.flatten()[layout.index_C]
    return _run_layers(trunk, tokens_C, layout, dtype, place_K)[: len(wanted_N)]


def read_rows(trunk: Any, tokens_bS: Tensor) -> Tensor:
    """Last hidden states (b, S, E) at all places of rows that are padded on the right, if any.

    The host waits for nothing and decides nothing, so it can be captured in a CUDA graph; a model's own forward pass looks
    into its inputs.
    """
    count, columns = tokens_bS.shape
    layout, dtype = Layout(count, columns, None), product_dtype(trunk.norm.weight)
    return _run_layers(trunk, tokens_bS.flatten(), layout, dtype, None).unflatten(0, (count, columns))


def _run_layers(trunk: Any, tokens_C: Tensor, layout: Layout, dtype: torch.dtype, place_K: Tensor | None) -> Tensor:
    """Last hidden states of packed tokens, (C, E), or (K, E) of the asked places among them."""
    x_CE = trunk.embed_tokens(tokens_C)
    positions_1S = torch.arange(layout.columns, device=x_CE.device).unsqueeze(0)
    tables = trunk.rotary_emb(torch.empty(0, dtype=torch.float32, device=x_CE.device), positions_1S)
    cos_SD, sin_SD = (table[0, :, : table.shape[-1] // 2].contiguous() for table in tables)
    layers, delta_CE = _layers(trunk), None
    for number, layer in enumerate(layers):
        x_CE, normal_CE = _normalise_sum(layer.input_layernorm, x_CE, delta_CE, dtype)
        mixed_CX = _attention(layer.self_attn, normal_CE, cos_SD, sin_SD, layout)
        if place_K is not None and number == len(layers) - 1:
            mixed_CX, x_CE = mixed_CX.index_select(0, place_K), x_CE.index_select(0, place_K)
        delta_CE, mlp = layer.self_attn.o_proj(mixed_CX), layer.mlp
        x_CE, normal_CE = _normalise_sum(layer.post_attention_layernorm, x_CE, delta_CE, dtype)
        delta_CE = mlp.down_proj(gated(mlp.gate_proj(normal_CE), mlp.up_proj(normal_CE)))
    return _normalise_sum(trunk.norm, x_CE, delta_CE, torch.promote_types(x_CE.dtype, trunk.norm.weight.dtype))[1]


def _cut_columns(tokens_bS: Tensor, wanted_N: Tensor) -> tuple[Tensor, Tensor]:
    """Without the columns that no row needs, but for some that make S a multiple of COLUMNS_BY."""
    columns = tokens_bS.shape[1]
    column_N = wanted_N % columns
    needed = min(columns, round_up(int(column_N.max()) + 1, COLUMNS_BY))
    return tokens_bS[:, :needed], wanted_N // columns * needed + column_N


def _pack(tokens_bS: Tensor, wanted_N: Tensor, by: int) -> tuple[Layout, Tensor]:
    """Which places are read, and where among them the asked ones are, of both a multiple of `by`.

    Places after the last asked one of each row are left out, but for some that fill up; all are read where that is hardly more.
    """
    count, columns = tokens_bS.shape
    row_N, column_N = wanted_N // columns, wanted_N % columns
    length_b = torch.zeros(count, dtype=torch.long, device=wanted_N.device)
    length_b.scatter_reduce_(0, row_N, column_N + 1, "amax")
    read_P = (torch.arange(columns, device=wanted_N.device) < length_b.unsqueeze(1)).flatten()
    left_out = (~read_P).nonzero().squeeze(1)
    filler = -(len(read_P) - len(left_out)) % by
    layout, place_N = Layout(count, columns, None), wanted_N
    if len(left_out) - filler >= LEAST_GAIN * len(read_P):
        read_P[left_out[:filler]] = True
        layout, place_N = Layout(count, columns, read_P.nonzero().squeeze(1)), (read_P.cumsum(0) - 1)[wanted_N]
    return layout, F.pad(place_N, (0, -len(place_N) % by))  # by place 0, again and again


def fill_by(dtype: torch.dtype) -> int:
    """What the tokens of a product on a CPU are to be a multiple of: oneDNN compiles one in bf16 for each shape, which takes
    milliseconds, and keeps it."""
    return 64 if dtype == torch.bfloat16 else 1


def round_up(number: int, by: int) -> int:
    """The next multiple."""
    return -(-number // by) * by


def _attention(attention: Any, normal_CE: Tensor, cos_SD: Tensor, sin_SD: Tensor, layout: Layout) -> Tensor:
    """What the heads of a layer gather, (C, X): before its output projection."""
    q_CX, k_CX, v_CX = attention.q_proj(normal_CE), attention.k_proj(normal_CE), attention.v_proj(normal_CE)
    norms = _head_norms(attention)
    if norms:
        q_CX, k_CX = (
            _normalise(norm, x_CX.unflatten(1, (-1, attention.head_dim)), torch.float32).flatten(1)
            for norm, x_CX in zip(norms, (q_CX, k_CX), strict=True)
        )
    with torch.autocast(normal_CE.device.type, enabled=False):
        return attend(q_CX, k_CX, v_CX, cos_SD, sin_SD, attention.scaling, layout)


def _normalise(norm: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon, dtype)


def _normalise_sum(norm: Any, x_CE: Tensor, delta_CE: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return add_norm(x_CE, delta_CE, norm.weight, norm.variance_epsilon, dtype)


def product_dtype(weight: Tensor) -> torch.dtype:
    """The type in which a weight is multiplied: that of autocast, or its own.

    Norms give it, where the model's own forward pass has each linear layer cast for itself: so gradients that
    several layers give to one norm are added in it.
    """
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
