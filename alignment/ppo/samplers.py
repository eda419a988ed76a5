"""The model that samples a rollout: `sync` gives it the policy's present weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment.generation import VLLMEngine
from alignment.lora.adapted import AdaptedModel
from alignment.ppo.background import in_background
from alignment.ppo.export import empty_policy, fill
from launch.engine import Engine, check_weights
from launch.zero import plain_weights


class Sampler(Protocol):
    """All ranks call `sync` together, before a rollout; then no rank waits for another while it samples."""

    def sync(self) -> Any:
        """A causal language model, whole on this rank; or an engine that has the weights."""


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


class ServedPolicy:
    """vLLM servers. The main rank writes the policy's weights, from any ZeRO stage, and has all servers load them.

    `weights` as of `WholeCopy`; `wait` waits for a thread on all ranks together: servers may be away for long.
    """

    def __init__(
        self,
        engine: Engine,
        policy: PreTrainedModel,
        weights: Callable[[], Iterator[tuple[str, Tensor]]],
        served: VLLMEngine,
        wait: Callable[[Future[Any]], Any],
    ) -> None:
        self.engine, self.policy, self.weights, self.served, self.wait = engine, policy, weights, served, wait

    def sync(self) -> VLLMEngine:
        runtime = self.engine.runtime
        with self.engine.gathered(self.policy.parameters()):
            items = self.weights() if runtime.is_main else iter(())
            state = {name: value.detach().to("cpu", copy=True) for name, value in items}
        check_weights(state, runtime)
        self.wait(in_background(lambda: self._push(state) if runtime.is_main else None, runtime, daemon=True))
        self.served.weights = runtime.broadcast(self.served.weights)
        return self.served

    def _push(self, state: dict[str, Tensor]) -> None:
        self.served.refresh(fill(empty_policy(self.policy), state))


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
