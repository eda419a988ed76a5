"""The model: transformers' own Qwen3 (QK-norm, RoPE, RMSNorm, SwiGLU), so that everything that loads Qwen3 loads it.

Only the initialisation is ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from alignment.pretrain.dial import Shape
from launch.attention import take_float32_for_short_rows
from launch.seeding import torch_generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OUTPUT_PROJECTIONS = ("o_proj", "down_proj")


def build_model(shape: Shape, rope_theta: float, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """A fresh model of this shape, float32 on the CPU, the same weights for the same seed whatever ran before."""
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.width // shape.heads,
        max_position_embeddings=shape.context,
        max_window_layers=shape.layers,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=shape.tied,
        dtype=torch.float32,
        **special,
    )
    take_float32_for_short_rows()
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: Qwen3ForCausalLM, seed: int) -> None:
    """Fill every weight from its own generator, by its name.

    Residual branches start at 0 (o_proj and down_proj; Zhang et al. 2019, Fixup, arXiv 1901.09321), the other hidden
    matrices keep the variance of their input (uniform, variance 1 / fan_in), norms are 1. An untied head starts at 0,
    so the first loss is log V exactly, beside embeddings of variance 1; tied ones share N(0, 1/d).
    """
    for name, weight in model.named_parameters():
        generator = torch_generator(seed, f"pretrain/init/{name}")
        if weight.ndim == 1:
            weight.fill_(1.0)
        elif "embed_tokens" in name:
            std = weight.shape[1] ** -0.5 if model.config.tie_word_embeddings else 1.0
            weight.normal_(0.0, std, generator=generator)
        elif "lm_head" in name or any(part in name for part in OUTPUT_PROJECTIONS):
            weight.zero_()
        else:
            bound = math.sqrt(3.0 / weight.shape[1])
            weight.uniform_(-bound, bound, generator=generator)


def hidden_matrices(model: torch.nn.Module) -> list[Tensor]:
    """The matrices between embedding and head: what Muon trains."""
    return [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]


def vectors_and_tables(model: torch.nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(norm weights, embedding and head): what AdamW trains beside Muon. Tied weights come once."""
    hidden = {id(p) for p in hidden_matrices(model)}
    rest = [p for p in model.parameters() if id(p) not in hidden]
    return [p for p in rest if p.ndim == 1], [p for p in rest if p.ndim > 1]


def count_parameters(model: torch.nn.Module, used_vocabulary: int) -> dict[str, int]:
    """`parameters`: all. `parameters_used`: without the embedding and head rows of tokens that the corpus never uses."""
    total = sum(p.numel() for p in model.parameters())
    tables = vectors_and_tables(model)[1]
    unused = sum(p.shape[1] * (p.shape[0] - used_vocabulary) for p in tables)
    return {"parameters": total, "parameters_used": total - unused}
