"""The model that samples a rollout: `sync` gives it the policy's present weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment.generation import VLLMEngine
from alignment.lora.adapted import AdaptedModel
from alignment.ppo.background import in_background
from alignment.ppo.export import empty_policy, fill
from launch.engine import Engine, check_weights
from launch.errors import UserError
from launch.zero import count_weights, plain_weights


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
        self._gathered = gathered_bytes(policy) if engine.zero_stage == 3 else 0
        check_memory(engine, 4 * count_weights(policy) + self._gathered)
        with plain_weights():
            copied: Any = type(policy)(copy.deepcopy(policy.config))
        self.model = copied.to(engine.runtime.device).eval().requires_grad_(False)

    def sync(self) -> PreTrainedModel:
        if self._gathered:
            check_memory(self.engine, self._gathered)
        held = self.model.state_dict()
        with self.engine.gathered(self.engine.module.policy.parameters()):
            for name, value in self.weights():
                held[name].copy_(value)
        return self.model


def gathered_bytes(policy: PreTrainedModel) -> int:
    """What the parameters of a model take when ZeRO-3 has gathered them all."""
    return sum(int(getattr(p, "ds_numel", p.numel())) * p.element_size() for p in policy.parameters())


def free_bytes(device: torch.device) -> int:
    """Memory that this process could still take: of its GPU, its own cache included, or of the machine."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(psutil.virtual_memory().available)


def check_memory(engine: Engine, needed: int) -> None:
    """UserError on every rank unless each has `needed` bytes free. All ranks call this together.

    In time: a rank that runs out of memory within a collective call leaves the others waiting. The ranks of a machine without
    GPUs share its memory; all of them look at it before any of them takes some.
    """
    runtime = engine.runtime
    ranks = 1 if runtime.device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = min(runtime.gather_objects(free_bytes(runtime.device) // ranks))
    if free < needed:
        raise UserError(
            f"policy: a whole copy of it to sample from takes {needed / 2**30:.3g} GiB on each rank, and {free / 2**30:.3g} are "
            "free; start fewer processes on a machine, train adapters (--lora.rank 16), or sample on vLLM servers (--vllm.url)"
        )


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
