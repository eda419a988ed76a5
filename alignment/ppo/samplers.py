"""The model that samples a rollout: `sync` gives it the policy's present weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment.lora.adapted import AdaptedModel
from launch.engine import Engine
from launch.zero import plain_weights


class Sampler(Protocol):
    """All ranks call `sync` together, before a rollout; then no rank waits for another while it samples."""

    def sync(self) -> Any:
        """A causal language model, whole on this rank."""


class PolicyItself:
    """The trained model, where each rank has it whole."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy = policy

    def sync(self) -> PreTrainedModel:
        return self.policy


class WholeCopy:
    """A plain copy of the policy: under ZeRO-3, or with its adapter merged in. It costs one model on every rank.

    `weights`: (key, value) of the plain model, read within `Engine.gathered`.
    """

    def __init__(
        self, engine: Engine, policy: PreTrainedModel, weights: Callable[[], Iterator[tuple[str, Tensor]]]
    ) -> None:
        self.engine, self.weights = engine, weights
        with plain_weights():
            copied: Any = type(policy)(copy.deepcopy(policy.config))
        self.model = copied.to(engine.runtime.device).eval().requires_grad_(False)

    def sync(self) -> PreTrainedModel:
        held = self.model.state_dict()
        with self.engine.gathered(self.engine.module.policy.parameters()):
            for name, value in self.weights():
                held[name].copy_(value)
        return self.model


class AdapterCopy:
    """Under ZeRO-3: a whole base with an adapter of its own. Only the adapter is gathered and copied."""

    def __init__(self, engine: Engine, trained: AdaptedModel, local: AdaptedModel, name: str) -> None:
        self.engine, self.trained, self.local, self.name = engine, trained, local, name
        local.model.to(engine.runtime.device).eval().requires_grad_(False)

    @torch.no_grad()
    def sync(self) -> PreTrainedModel:
        theirs, ours = (model.parameters(self.name) for model in (self.trained, self.local))
        with self.engine.gathered(theirs):
            for mine, present in zip(ours, theirs, strict=True):
                mine.copy_(present)
        return self.local.model
