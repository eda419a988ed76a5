"""The pretraining loop: batch -> loss -> gradients -> update -> log.

Tensor names end in their axes: B rows of a micro-batch, T cells of a row, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignment.pretrain.config import PretrainConfig
from alignment.pretrain.corpus import HeldOut
from alignment.pretrain.dial import flops_per_token
from alignment.pretrain.model import hidden_matrices, vectors_and_tables
from alignment.pretrain.muon import MuonAdamW
from alignment.pretrain.plan import Plan
from alignment.pretrain.schedule import wsd_factor
from alignment.pretrain.throughput import model_flops_utilisation
from data.order import Rows, global_batch, rank_part
from data.packing import IGNORE, Batch
from launch.checkpoint import Checkpoint, CheckpointStore
from launch.engine import Engine
from launch.errors import UserError
from launch.runtime import Runtime

Metrics = dict[str, float]
ADAMW_BETAS = (0.8, 0.95)


def make_optimizer(model: nn.Module, plan: Plan, weight_decay: float) -> torch.optim.Optimizer:
    """Hidden matrices by the plan's algorithm, with weight decay; norms, embeddings and head by AdamW, without."""
    vectors, tables = vectors_and_tables(model)
    rest = {"params": [*tables, *vectors], "lr": plan.learning_rate, "weight_decay": 0.0}
    matrices = {"params": hidden_matrices(model), "lr": plan.matrix_learning_rate, "weight_decay": weight_decay}
    if plan.optimizer == "muon":
        return MuonAdamW([{**matrices, "algorithm": "muon"}, {**rest, "betas": ADAMW_BETAS}])
    return torch.optim.AdamW([matrices, rest], betas=(0.9, 0.95), eps=1e-10)


def token_nats(
    model: Callable[..., Any], batch: Batch, device: torch.device, reduction: Literal["sum", "none"] = "sum"
) -> Tensor:
    """-log p(target) in nats, float32: the sum over the targets of a batch, or each, (B T,), 0 where there is none."""
    input_BT, position_BT, target_BT = (
        torch.from_numpy(batch[name]).to(device) for name in ("input_ids", "position_ids", "targets")
    )
    logits_BTV = model(input_ids=input_BT, position_ids=position_BT, use_cache=False).logits
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), target_BT.flatten(), ignore_index=IGNORE, reduction=reduction
    )


def micro_batches(batch: Batch, rows: int) -> Iterator[Batch]:
    """A batch in parts of at most `rows` rows."""
    for start in range(0, len(batch["targets"]), rows):
        yield {name: array[start : start + rows] for name, array in batch.items()}


class Pretrainer:
    """Model, optimizer and data of a run. `train` makes all updates; `update` and `evaluate` can be called alone."""

    def __init__(
        self, config: PretrainConfig, plan: Plan, model: nn.Module, train: Rows, heldout: HeldOut, runtime: Runtime
    ) -> None:
        self.config, self.plan, self.train_rows, self.heldout, self.runtime = config, plan, train, heldout, runtime
        self.micro_rows = max(1, config.micro_batch_tokens // config.context)
        optimizer = make_optimizer(model, plan, config.weight_decay)
        self.engine = Engine(runtime, model, optimizer, config.max_grad_norm, self.micro_rows)
        self.step = 0

    def train(self, after_update: Callable[[int, Metrics], None]) -> None:
        """All updates that are left; `after_update(step, metrics)` is called with the number of updates made."""
        while self.step < self.plan.steps:
            metrics = self.update()
            after_update(self.step, metrics)

    def update(self) -> Metrics:
        """One optimizer step on the global batch of this step."""
        started = time.perf_counter()
        plan, config = self.plan, self.config
        batch = global_batch(self.train_rows, self.step, plan.batch_rows, config.seed)
        targets = int((batch["targets"] != IGNORE).sum())
        factor = wsd_factor(self.step, plan.steps, plan.warmup_steps, plan.decay_steps, config.decay_shape)
        self.engine.set_lr(factor)
        loss = self._accumulate(batch, targets)
        if not math.isfinite(loss):
            raise UserError(
                f"the training loss is {loss} at step {self.step + 1}; lower learning_rate and matrix_learning_rate"
            )
        norm = self.engine.step()
        self.step += 1
        return {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/lr": plan.learning_rate * factor,
            "train/matrix_lr": plan.matrix_learning_rate * factor,
            "train/tokens": float(self.step * plan.batch_tokens),
            "train/epoch": self.step * plan.batch_rows / self.train_rows.count,
            **self._speed(plan.batch_tokens, time.perf_counter() - started),
        }

    def _accumulate(self, batch: Batch, targets: int) -> float:
        """Gradients of the mean loss over the targets of the GLOBAL batch, whatever the ranks and micro-batches."""
        share = rank_part(batch, self.runtime.rank, self.runtime.world)
        parts = list(micro_batches(share, self.micro_rows))
        total = torch.zeros((), dtype=torch.float64)
        for number, part in enumerate(parts, 1):
            with self.engine.accumulating(last=number == len(parts)):
                loss = token_nats(self.engine, part, self.runtime.device) / targets
                self.engine.backward(loss, last=number == len(parts))
            total += loss.detach().cpu().double()
        return float(self.runtime.sum(total))

    def _speed(self, tokens: int, seconds: float) -> Metrics:
        rate = tokens / seconds
        device = torch.cuda.get_device_name(self.runtime.device) if self.runtime.device.type == "cuda" else "cpu"
        per_token = flops_per_token(self.plan.shape)
        mfu = model_flops_utilisation(rate, per_token, device, self.runtime.precision, self.runtime.world)
        speed = {"perf/tokens_per_second": rate}
        return speed if mfu is None else {**speed, "perf/mfu": mfu}

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Held-out nats per token, end tokens included, and bits per byte: sums over all ranks' rows, divided once.

        Bits per byte leave out the nats of the end tokens, which have no bytes, as `evaluate text` does.
        """
        rows, world = self.heldout.rows, self.runtime.world
        # every rank makes the same number of forward passes, since ZeRO-3 gathers weights in each of them
        padded = np.arange(-(-rows.count // world) * world)
        batch = rows.take(0, padded % rows.count)
        batch["targets"][padded >= rows.count] = IGNORE
        share = rank_part(batch, self.runtime.rank, world)
        sums = torch.zeros(2, dtype=torch.float64)  # nats of all targets, and of the end tokens among them
        for part in micro_batches(share, self.micro_rows):
            nats_N = token_nats(self.engine, part, self.runtime.device, "none").cpu().double()
            end_N = torch.from_numpy(part["targets"]).flatten() == self.heldout.end_id
            sums += torch.stack([nats_N.sum(), nats_N[end_N].sum()])
        total, ends = self.runtime.sum(sums).tolist()
        return {
            "heldout/nats_per_token_with_eos": total / int((rows.targets != IGNORE).sum()),
            "heldout/bits_per_byte": (total - ends) / math.log(2) / self.heldout.scored_bytes,
        }

    def save(self, store: CheckpointStore) -> None:
        """A checkpoint of weights and optimizer; data order and learning rate follow from the step."""
        self.engine.save(store, self.step, {})

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.engine.load(checkpoint)
        self.step = checkpoint.step
