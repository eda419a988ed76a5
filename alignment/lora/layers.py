"""The LoRA layers that peft puts into a model: which layers get them, and the values that they start from.

Shapes: r rank, I inputs and O outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from alignment.lora.config import LoraOptions
from evaluation.adapters import CONFIG, Adapter, base_name
from launch.errors import UserError, nearest
from launch.files import read_json, write_json
from launch.seeding import torch_generator

CAUSAL, CLASSIFIER = "CAUSAL_LM", "SEQ_CLS"
"""peft's names of what an adapted model is for."""


def linear_names(model: Any) -> list[str]:
    """Last parts of the names of a model's linear layers, without its head."""
    heads = [getattr(model, name, None) for name in ("lm_head", "score")] + [model.get_output_embeddings()]
    return sorted(
        {
            path.rpartition(".")[2]
            for path, layer in model.named_modules()
            if isinstance(layer, (nn.Linear, Conv1D)) and not any(layer is head for head in heads)
        }
    )


def choose_targets(options: LoraOptions, names: Sequence[str]) -> list[str]:
    """The linear layers that options ask for. UserError for one that the model does not have."""
    for target in options.targets:
        if target not in names:
            raise UserError(f"lora.targets: the model has no linear layer '{target}'{nearest(target, names)}")
    return list(options.targets or names)


def lora_config(rank: int, scale: float, targets: Sequence[str], base: str, task: str) -> LoraConfig:
    """peft's configuration of a plain adapter. A classifier's head `score` is trained and saved whole."""
    alpha = scale * rank
    return LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]
        target_modules=list(targets),
        lora_dropout=0.0,
        bias="none",
        task_type=task,
        base_model_name_or_path=base_name(base),
        modules_to_save=["score"] if task == CLASSIFIER else None,
    )


def sort_config(folder: Path) -> None:
    """Write an adapter's configuration in one order: peft keeps the targets as a set, whose order each process draws anew."""
    config = read_json(folder / CONFIG)
    write_json(folder / CONFIG, {**config, "target_modules": sorted(config["target_modules"])})


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Path -> LoRA layer of a model."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}


@torch.no_grad()
def start_adapter(layers: Mapping[str, Any], name: str, seed: int, start: Adapter | None) -> None:
    """Give an adapter its first values: those of `start`, whatever its rank and scale, or no effect (B = 0).

    A smaller adapter is the larger one with zero columns in B: the function is the same, and the new rows of A, drawn
    as peft draws them (uniform within 1 / sqrt(I)), give B's new columns a gradient. UserError when `start` is larger.
    """
    held = {path: layer for path, layer in layers.items() if name in layer.lora_A}
    factors = {} if start is None else start.factors
    if start is not None:
        _check_room(held, name, start)
    for path, layer in sorted(held.items()):
        a_rI, b_Or = layer.lora_A[name].weight, layer.lora_B[name].weight
        draws_rI = torch.rand(a_rI.shape, generator=torch_generator(seed, f"lora/{name}/{path}"))
        a_rI.copy_((2 * draws_rI - 1) / math.sqrt(a_rI.shape[1]))
        b_Or.zero_()
        if start is not None and path in factors:
            old_a_rI, old_b_Or = factors[path]
            a_rI[: len(old_a_rI)] = old_a_rI.to(a_rI)
            b_Or[:, : len(old_a_rI)] = (old_b_Or * (start.scale / layer.scaling[name])).to(b_Or)


def _check_room(held: Mapping[str, Any], name: str, start: Adapter) -> None:
    """UserError when an adapter cannot hold the one that it starts from."""
    for path in start.factors:
        if path not in held:
            raise UserError(
                f"lora.targets: the adapter {start.source} changes {path}, which is not among the targets; add "
                f"{path.rpartition('.')[2]}, or leave lora.targets out"
            )
        if start.rank > held[path].r[name]:
            raise UserError(
                f"lora.rank: {held[path].r[name]} is below the rank {start.rank} of the adapter {start.source}, which is "
                f"trained on; give --lora.rank {start.rank} or more"
            )
