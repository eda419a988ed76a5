"""The training loop of every kind of generative model: batch -> phases (loss, gradients, update) -> average -> log.

A kind brings a `Learner`: its model and its phases, one for each optimizer (a GAN has two). Every random choice is a
function of (seed, purpose, step, row of the global batch), so a checkpoint is weights, optimizers, average and step,
and the losses do not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from data.order import batch_rows
from generative.scaling import to_signed
from launch.checkpoint import Checkpoint, CheckpointStore
from launch.engine import Engine, load_engines, save_engines
from launch.errors import UserError
from launch.runtime import Runtime
from launch.seeding import numpy_generator
from launch.zero import plain_weights

Terms = dict[str, Tensor]
WARMUP = 0.03  # share of the steps
FINAL_LR = 0.02  # of the peak


@dataclass(frozen=True)
class Batch:
    """This process's rows of the global batch of a step."""

    images: Tensor
    rows: slice
    size: int
    seed: int
    step: int

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """N(0, 1) noise (rows, *shape): these rows of the global batch's noise, whatever the number of processes."""
        generator = numpy_generator(self.seed, f"generative/{purpose}", self.step)
        noise = generator.standard_normal((self.size, *shape), np.float32)[self.rows]
        return torch.from_numpy(noise).to(self.images.device)

    def uniform(self, purpose: str) -> Tensor:
        """One number in [0, 1), the same on every process."""
        return torch.tensor(numpy_generator(self.seed, f"generative/{purpose}", self.step).random())

    def mean(self, values_B: Tensor) -> Tensor:
        """This process's share of the mean over the global batch: the shares of all processes add up to it."""
        return values_B.sum() / self.size


@dataclass(frozen=True)
class Phase:
    """One update of a step. `terms` gives named shares of global means (`Batch.mean`); the first is minimised."""

    name: str
    engine: Engine
    terms: Callable[[Batch], Terms]


class Learner(Protocol):
    """What a kind of model brings to the loop."""

    @property
    def model(self) -> Any:
        """What is saved, with `save_pretrained`."""

    @property
    def averaged(self) -> nn.Module:
        """The part of it that generates: its weights are averaged over the steps."""

    @property
    def phases(self) -> Sequence[Phase]:
        """The updates of a step, in order."""


def lr_factor(step: int, steps: int) -> float:
    """Learning rate of update `step` (from 0) relative to its peak: linear warm-up, then a cosine to FINAL_LR."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    angle = math.pi * (step - warmup) / max(1, steps - warmup)
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(angle))


class Trainer:
    """Learner, images and average of a run. `update` makes one step and can be called alone."""

    def __init__(
        self,
        learner: Learner,
        images: np.ndarray,
        steps: int,
        batch_size: int,
        ema_decay: float,
        seed: int,
        runtime: Runtime,
    ) -> None:
        if batch_size % runtime.world:
            raise UserError(
                f"batch_size: {batch_size} does not divide by {runtime.world} processes; give a multiple of {runtime.world}"
            )
        self.learner, self.images, self.steps, self.batch_size = learner, images, steps, batch_size
        self.seed, self.runtime, self.step = seed, runtime, 0
        with self._whole():
            self.ema = EMAModel(learner.averaged.parameters(), decay=ema_decay, foreach=True)

    def batch(self) -> Batch:
        """This process's part of the next step's global batch; every epoch visits all images in an order of its own."""
        share = self.batch_size // self.runtime.world
        rows = slice(self.runtime.rank * share, (self.runtime.rank + 1) * share)
        parts = batch_rows(self.step, self.batch_size, len(self.images), self.seed)
        chosen = np.concatenate([indices for _, indices in parts])[rows]
        images = to_signed(self.images[chosen]).to(self.runtime.device)
        return Batch(images, rows, self.batch_size, self.seed, self.step)

    def update(self) -> dict[str, float]:
        """One step: every phase in order, then the average. Returns the means over the global batch, by name."""
        started = time.perf_counter()
        batch, factor = self.batch(), lr_factor(self.step, self.steps)
        terms: Terms = {}
        norms: dict[str, float] = {}
        for phase in self.learner.phases:
            phase.engine.set_lr(factor)
            found = phase.terms(batch)
            phase.engine.backward(next(iter(found.values())), last=True)
            norms[f"{phase.name}/grad_norm"] = phase.engine.step()
            terms |= {f"{phase.name}/{name}": value.detach() for name, value in found.items()}
        with self._whole():
            self.ema.step(self.learner.averaged.parameters())
        means = dict(zip(terms, self.runtime.sum(torch.stack(list(terms.values()))).tolist(), strict=True))
        self.step += 1
        self._check_finite(means)
        speed = {"perf/images_per_second": self.batch_size / (time.perf_counter() - started)}
        return {**means, **norms, "learning_rate_factor": factor, **speed}

    def _check_finite(self, means: dict[str, float]) -> None:
        for name, value in means.items():
            if not math.isfinite(value):
                raise UserError(f"{name} is {value} at step {self.step}; lower learning_rate")

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Inside, the averaged part is whole on every rank: under ZeRO-3 its weights are spread over them.

        diffusers' average must not see ZeRO-3: it would gather by itself, with a `deepspeed` that it has not imported.
        """
        with self.learner.phases[-1].engine.gathered(self.learner.averaged.parameters()), plain_weights():
            yield

    # ------------------------------------------------------------------------------------ state

    def save(self, store: CheckpointStore) -> None:
        """A checkpoint of weights, optimizers and average; batches, noise and learning rate follow from the step."""
        save_engines(self._engines(), store, self.step, {"ema": self.ema.state_dict()})

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.step = checkpoint.step
        self.ema.load_state_dict(load_engines(self._engines(), checkpoint)["ema"])
        self.ema.to(self.runtime.device)

    def _engines(self) -> dict[str, Engine]:
        return {phase.name: phase.engine for phase in self.learner.phases}

    @contextlib.contextmanager
    def finished(self) -> Iterator[Any]:
        """Inside, the model is whole and has the averaged weights; training cannot go on from it."""
        with self._whole():
            self.ema.copy_to(self.learner.averaged.parameters())
            yield self.learner.model
