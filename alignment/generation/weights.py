"""The weights of a Llama-like model, as the decoder reads them: query, key and value in one matrix, gate and up in another.

Only what is fused or in another precision is a copy; everything else is the model's own storage. So a refresh costs one
pass over about half of the weights, and the decoder always speaks for the policy as it was at the refresh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from evaluation.trunk import PRECISIONS, is_hooked, is_plain

ARCHITECTURES = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


@dataclass
class LayerWeights:
    """One decoder layer. Matrices are (out, in), norms (in, 1): they scale the features of column vectors."""

    norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass
class Weights:
    """A whole model."""

    embedding: Tensor
    layers: list[LayerWeights]
    norm: Tensor
    head: Tensor
    rotary: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    """Of the attention scores, before the softmax."""
    eps: float


def is_supported(model: PreTrainedModel) -> bool:
    """Whether the decoder computes what this model's forward pass does; if not, the forward pass itself is used."""
    if type(model) not in ARCHITECTURES or any(p.dtype not in PRECISIONS or p.numel() == 0 for p in model.parameters()):
        return False  # a parameter without elements is one that ZeRO-3 has spread over the ranks
    if model.get_output_embeddings().bias is not None:
        return False  # no configuration asks for one, but weights can be put in place in Python
    return is_plain(model.config) and all(_is_unchanged(module) for module in model.modules())


def _is_unchanged(module: nn.Module) -> bool:
    """Neither replaced (adapters, quantised layers) nor hooked: a hook may change what the module returns."""
    replaced = hasattr(module, "weight") and not (
        type(module) in (nn.Linear, nn.Embedding)
        or type(module).__name__.endswith("RMSNorm")
        or getattr(module, "is_linear", False)
    )
    return not (replaced or is_hooked(module))


def read_weights(model: Any, dtype: torch.dtype) -> Weights:
    """Weights for matrix products in `dtype`; embedding and norms stay as they are."""
    weights = _read_ends(model, dtype)
    weights.layers = [_read_layer(layer, dtype) for layer in model.model.layers]
    return weights


def _read_ends(model: Any, dtype: torch.dtype) -> Weights:
    """What comes before and after the layers; without them."""
    attention = model.model.layers[0].self_attn
    config = model.config
    return Weights(
        embedding=model.model.embed_tokens.weight.detach(),
        layers=[],
        norm=_column(model.model.norm.weight),
        head=model.lm_head.weight.detach().to(dtype),
        rotary=model.model.rotary_emb,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        scale=attention.scaling,
        eps=config.rms_norm_eps,
    )


def rewrite_weights(held: Weights, model: Any, dtype: torch.dtype) -> bool:
    """Read the model again into the memory of `held`, which was read from it before: what captured graphs refer to.

    False where `held` cannot become the model's present weights that way: they are asked for in another precision, or
    the model's own memory, of which `held` has a part, has moved. `held` is of no use then.
    """
    if held.head.dtype != dtype:
        return False
    own = {parameter.data_ptr() for parameter in model.parameters()}
    layers = zip(held.layers, model.model.layers, strict=True)
    return all(_rewrite(old, _read_layer(layer, dtype), own) for old, layer in layers) and _rewrite(
        held, _read_ends(model, dtype), own
    )


def _rewrite(held: Any, present: Any, own: set[int]) -> bool:
    for old, new in zip(_tensors(held), _tensors(present), strict=True):
        if new.data_ptr() not in own:
            old.copy_(new)
        elif new.data_ptr() != old.data_ptr():
            return False
    return True


def _tensors(part: LayerWeights | Weights) -> Iterator[Tensor]:
    return (value for value in vars(part).values() if isinstance(value, Tensor))


def copied_bytes(weights: Weights, model: Any) -> int:
    """Memory of what is not the model's own."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    parts: list[LayerWeights | Weights] = [weights, *weights.layers]
    tensors = [tensor for part in parts for tensor in _tensors(part)]
    return sum(tensor.nbytes for tensor in tensors if tensor.data_ptr() not in own)


def _read_layer(layer: Any, dtype: torch.dtype) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    qkv, qkv_bias = _fuse(dtype, attention.q_proj, attention.k_proj, attention.v_proj)
    gate_up, gate_up_bias = _fuse(dtype, mlp.gate_proj, mlp.up_proj)
    out, out_bias = _fuse(dtype, attention.o_proj)
    down, down_bias = _fuse(dtype, mlp.down_proj)
    return LayerWeights(
        norm=_column(layer.input_layernorm.weight),
        qkv=qkv,
        qkv_bias=qkv_bias,
        q_norm=_column(attention.q_norm.weight) if hasattr(attention, "q_norm") else None,
        k_norm=_column(attention.k_norm.weight) if hasattr(attention, "k_norm") else None,
        out=out,
        out_bias=out_bias,
        mlp_norm=_column(layer.post_attention_layernorm.weight),
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        down=down,
        down_bias=down_bias,
    )


def _fuse(dtype: torch.dtype, *parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Matrices below one another, and their biases as a column."""
    matrices = [p.weight.detach().to(dtype) for p in parts]
    biases = [p.bias.detach().to(dtype) for p in parts if p.bias is not None]
    fused = torch.cat(matrices) if len(parts) > 1 else matrices[0]
    return fused, torch.cat(biases).unsqueeze(1) if biases else None


def _column(weight: Tensor) -> Tensor:
    return weight.detach().float().unsqueeze(1)
