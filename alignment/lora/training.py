"""A model with one adapter to train, as TRL's trainers take it."""

from __future__ import annotations

from typing import Any

from peft import PeftModel, get_peft_model

from alignment.lora.config import LoraOptions
from alignment.lora.layers import (
    choose_targets,
    linear_names,
    lora_config,
    lora_layers,
    start_adapter,
)
from evaluation.adapters import Adapter, base_name


def with_adapter(model: Any, base: str, options: LoraOptions, task: str, seed: int, start: Adapter | None) -> PeftModel:
    """`model`, loaded from `base`, with one adapter to train that starts from `start`; its base is frozen.

    `task`: CAUSAL or CLASSIFIER, whose head is trained, too.
    """
    targets = choose_targets(options, linear_names(model))
    config = lora_config(options.rank, options.scale, targets, base, task)
    config.base_model_name_or_path = model.name_or_path  # peft warns that it changes any other name to this one
    wrapped = get_peft_model(model, config)
    wrapped.peft_config["default"].base_model_name_or_path = base_name(base)
    start_adapter(lora_layers(wrapped.get_base_model()), "default", seed, start)
    return wrapped
