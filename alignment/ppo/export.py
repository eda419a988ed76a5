"""Plain `from_pretrained` folders of weights that no plain model holds: a merged adapter, a trunk with a value head."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from evaluation.adapters import HEAD
from launch.errors import UserError
from launch.zero import plain_weights


def empty_policy(policy: PreTrainedModel) -> PreTrainedModel:
    """A model like the policy's base, without weights."""
    with plain_weights(), torch.device("meta"):
        empty: Any = type(policy)(copy.deepcopy(policy.config))
    empty.generation_config = copy.deepcopy(policy.generation_config)
    return empty


def empty_critic(policy: PreTrainedModel) -> PreTrainedModel:
    """A one-label sequence classifier with the policy's trunk, without weights. UserError when transformers has none."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    try:
        with plain_weights(), torch.device("meta"):
            empty = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError:
        empty = None
    if empty is None or not isinstance(getattr(empty, "score", None), nn.Linear):
        raise UserError(
            f"critic_from: transformers has no sequence classifier with a head `score` for {config.model_type}, so a value "
            "head on it could not be saved; choose a policy of another architecture, an estimator without a critic, or "
            "--critic_from reward with a reward model that has such a head"
        )
    return empty


def critic_state(policy: PreTrainedModel, weights: dict[str, Tensor], head_1D: Tensor) -> dict[str, Tensor]:
    """The weights of `empty_critic(policy)`: those of the policy's trunk, and the head."""
    trunk = f"{policy.base_model_prefix}."
    return {**{key: value for key, value in weights.items() if key.startswith(trunk)}, HEAD: head_1D}


def save_weights(empty: PreTrainedModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Fill an empty model with weights on the CPU and write it."""
    fill(empty, weights).save_pretrained(folder)


def fill(empty: PreTrainedModel, weights: dict[str, Tensor]) -> PreTrainedModel:
    """The model, with these weights."""
    empty.load_state_dict(weights, assign=True)
    empty.tie_weights()
    return empty
