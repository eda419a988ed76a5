"""A model whose linear layers hold several adapters by name, of which one acts at a time, or none.

peft makes the layers; which adapter acts is decided here. peft's own switch changes which parameters have gradients,
which under DDP and ZeRO must stay the same, and is one for all threads: rewards may be read while responses are sampled.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.lora.config import LoraOptions
from alignment.lora.layers import (
    CAUSAL,
    CLASSIFIER,
    choose_targets,
    linear_names,
    lora_config,
    lora_layers,
    sort_config,
    start_adapter,
)
from evaluation.adapters import HEAD, PREFIX, WEIGHTS, Adapter, linear_layer

assert isinstance(LoraLayer.active_adapters, property), "peft has changed: look at AdaptedModel"


class AdaptedModel:
    """A frozen base with named adapters. `default` acts unless `acting` says otherwise."""

    def __init__(self, model: PreTrainedModel, base: str, default: str) -> None:
        self.model, self.base, self.default = model.requires_grad_(False), base, default
        self.layers: dict[str, Any] = {}
        self.names: set[str] = set()
        self._linear_names = linear_names(model)
        self._acting: ContextVar[str | None] = ContextVar("acting adapter", default=default)

    def add_trained(self, name: str, options: LoraOptions, seed: int, start: Adapter | None) -> None:
        """An adapter to train, which starts from another one, or without effect."""
        targets = choose_targets(options, self._linear_names)
        self._inject(name, options.rank, options.scale, targets, seed, start)
        for parameter in self.parameters(name):
            parameter.requires_grad_(True)

    def add_frozen(self, name: str, adapter: Adapter, field: str) -> None:
        """An adapter as it is, without gradients. UserError when it belongs to another base."""
        for path in adapter.factors:
            if path not in self.layers:
                linear_layer(field, self.model, path, adapter.source)
        self._inject(name, adapter.rank, adapter.scale, list(adapter.factors), 0, adapter)

    def _inject(self, name: str, rank: int, scale: float, targets: list[str], seed: int, start: Adapter | None) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        with warnings.catch_warnings():  # that there are several adapters, and that Conv1D keeps its weight transposed
            warnings.simplefilter("ignore", UserWarning)
            inject_adapter_in_model(lora_config(rank, scale, targets, self.base, CAUSAL), self.model, name)
        self.model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.layers = lora_layers(self.model)
        self.names.add(name)
        for layer in self.layers.values():
            _follow(layer, self._acting)
        start_adapter(self.layers, name, seed, start)

    @contextlib.contextmanager
    def acting(self, name: str | None) -> Iterator[None]:
        """Inside, in this thread, this adapter acts; None is the bare base."""
        assert name is None or name in self.names, name
        token = self._acting.set(name)
        try:
            yield
        finally:
            self._acting.reset(token)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """A and B of an adapter's layers."""
        held = [layer for layer in self.layers.values() if name in layer.lora_A]
        return [factor[name].weight for layer in held for factor in (layer.lora_A, layer.lora_B)]

    def factors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """(key, value) of an adapter as peft saves it. Under ZeRO-3, within `Engine.gathered`."""
        for path, layer in self.layers.items():
            if name in layer.lora_A:
                yield f"{PREFIX}{path}.lora_A.weight", layer.lora_A[name].weight.detach()
                yield f"{PREFIX}{path}.lora_B.weight", layer.lora_B[name].weight.detach()

    @torch.no_grad()
    def effective_state(self, name: str | None) -> Iterator[tuple[str, Tensor]]:
        """(key, value) of the plain model that base and adapter are together. Under ZeRO-3, within `Engine.gathered`."""
        for key, value in self.model.state_dict().items():
            if ".lora_" in key:
                continue
            path, _, leaf = key.rpartition(".")
            if path.endswith(".base_layer"):
                path = path.removesuffix(".base_layer")
                layer = self.layers[path]
                if leaf == "weight" and name in layer.lora_A:
                    value = value + layer.get_delta_weight(name)
            yield f"{path}.{leaf}", value

    def save(self, name: str, factors: dict[str, Tensor], folder: Path, head_LD: Tensor | None = None) -> None:
        """Write an adapter, given its `factors`, as a peft folder: of a language model, or with a head of a classifier."""
        layer = next(layer for layer in self.layers.values() if name in layer.lora_A)
        targets = sorted({path.rpartition(".")[2] for path, layer in self.layers.items() if name in layer.lora_A})
        task = CAUSAL if head_LD is None else CLASSIFIER
        config = lora_config(layer.r[name], layer.scaling[name], targets, self.base, task)
        config.inference_mode = True
        config.save_pretrained(str(folder))
        sort_config(folder)
        whole = factors if head_LD is None else {**factors, f"{PREFIX}{HEAD}": head_LD}
        save_file({key: value.contiguous() for key, value in whole.items()}, folder / WEIGHTS, {"format": "pt"})


def _follow(layer: Any, acting: ContextVar[str | None]) -> None:
    """Let a LoRA layer ask `acting` which adapter acts, in place of its own attributes."""
    kind = type(layer)
    if "_follows" in vars(kind):
        return
    own = {
        "_follows": acting,
        "disable_adapters": property(lambda self: acting.get() is None),
        "active_adapters": property(lambda self: [acting.get()]),
    }
    layer.__class__ = type(kind.__name__, (kind,), own)
