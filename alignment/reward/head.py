"""The head of a reward model or a critic: one number from a hidden state, on the body of a causal language model."""

from __future__ import annotations

import math
import types
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from alignment.models import switch_off_dropout
from evaluation.adapters import HEAD
from evaluation.loading import check_embeddings, load_merged, named_errors
from evaluation.scoring import linear_in_fp32
from launch.errors import UserError
from launch.seeding import torch_generator


def load_scorer(name: str, tokenizer: Any, seed: int) -> PreTrainedModel:
    """A sequence classifier with one label on the body of a causal language model, its head drawn anew.

    pad_token_id is set, since it tells transformers where a row ends. Dropout is off: the pair's difference must come
    from the texts.
    """
    with named_errors("model", name, "a causal language model") as located:
        model: Any
        model, missing = load_merged(
            "model", located, AutoModelForSequenceClassification, num_labels=1, dtype=torch.float32
        )
    if missing - {HEAD}:
        raise UserError(
            f"model: {name}: the weights lack {min(missing - {HEAD})}, so a head would sit on a body that is partly random; "
            "give a causal language model with all its weights"
        )
    check_embeddings("model", name, model, tokenizer)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    switch_off_dropout(model)
    init_head(model.score.weight, seed)
    keep_head_in_fp32(model.score)
    return model


def keep_head_in_fp32(head: Any) -> None:
    """Let the head compute in float32 whatever the precision around it: see `linear_in_fp32`."""
    head.forward = types.MethodType(_forward_in_fp32, head)  # a method follows its head into peft's deep copy of it


def _forward_in_fp32(head: Any, hidden: Tensor) -> Tensor:
    return linear_in_fp32(head, hidden)


def init_head(weight: nn.Parameter, seed: int) -> None:
    """Draw a head (1, D) from N(0, 1/sqrt(D + 1)) (Stiennon et al. 2020; Huang et al. 2024, detail 13).

    1/sqrt(D + 1) is the standard deviation. On features of unit scale the first rewards then have unit scale, too.
    Under ZeRO-3 the weight is partitioned: it is gathered, and rank 0's values are the ones that count.
    """
    partitioned = hasattr(weight, "ds_id")
    shape = getattr(weight, "ds_shape", weight.shape)
    values = torch.randn(shape, generator=torch_generator(seed, "reward/head")) / math.sqrt(shape[-1] + 1)
    if not partitioned:
        weight.data.copy_(values)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        weight.data.copy_(values)
