"""The trained part of PPO: policy and critic in one engine, their losses, and the optimizer steps of an update.

Shapes: B episodes of the global batch, T response tokens; N response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignment.ppo import objectives as ppo
from alignment.ppo.config import PPOConfig
from alignment.ppo.ptx import PTXData
from alignment.ppo.rollout import Batch, Rollout, make_batch, plan_parts
from alignment.ppo.shaping import OF_POLICY, check_sizes
from launch.engine import Engine
from launch.errors import UserError
from launch.runtime import Runtime
from launch.seeding import permutation

Metrics = dict[str, float]


class Learner:
    """Makes the optimizer steps of each update. `module` is an ActorCritic, or anything with its `forward`."""

    def __init__(
        self,
        config: PPOConfig,
        module: nn.Module,
        groups: Sequence[dict[str, object]],
        runtime: Runtime,
        pad_id: int,
        room: int,
        ptx: PTXData | None = None,
    ) -> None:
        self.config, self.runtime, self.pad_id, self.ptx = config, runtime, pad_id, ptx
        self.room = config.micro_batch_size * room
        """Padded tokens of a micro-batch."""
        self.width_of: Callable[[int], int] = lambda length: length
        """Of a row of so many tokens: what it takes of that room."""
        self.moves = 0
        """Steps and loads so far: whether the policy is still that of before."""
        self.rate_factor = 1.0
        """Of the learning rates, besides their schedule."""
        self.tell: Callable[[str], Any] = lambda text: None
        """Told of each micro-batch, for the display."""
        # fused: one pass over weights, gradients and moments in place of a dozen, an eighth of the time on a CPU
        optimizer = torch.optim.AdamW(list(groups), eps=config.adam_eps, weight_decay=0.0, fused=True)
        self.engine = Engine(runtime, module, optimizer, config.max_grad_norm, config.micro_batch_size)

    def plan(self, rows: Sequence[int], lengths: Sequence[int], room: int, world: int) -> list[list[list[int]]]:
        """`plan_parts` by the widths of rows."""
        return plan_parts(rows, [self.width_of(length) for length in lengths], room, world)

    def update(self, rollout: Rollout, number: int, kl_coef: float) -> Metrics:
        """`epochs` passes over the rollout in `minibatches` optimizer steps each. Returns token-weighted means over all of them.

        Old log-probabilities that are not there are those of the first step's own pass, for which it must have all rows.
        """
        config = self.config
        if number >= config.updates:
            raise UserError(
                f"updates: update {number + 1} is one more than the config's {config.updates}, over which the learning rate falls "
                "to 0 (it would be negative from here on); build the trainer with as many updates as you make"
            )
        sums: dict[str, Tensor] = {}
        norms: list[float] = []
        for epoch in range(config.epochs):
            order = permutation(len(rollout), config.seed, "ppo-minibatch", number, epoch)
            for step, minibatch in enumerate(order.reshape(config.minibatches, -1)):
                counter = (number, epoch * config.minibatches + step)
                norms.append(self._step(rollout, minibatch.tolist(), counter, kl_coef, sums))
                self.moves += 1
        return self._metrics(sums, norms)

    def _step(
        self, rollout: Rollout, minibatch: list[int], counter: tuple[int, int], kl_coef: float, sums: dict[str, Tensor]
    ) -> float:
        """One optimizer step: micro-batches whose losses are weighted as parts of the global minibatch."""
        config, runtime = self.config, self.runtime
        warming = counter[0] < config.critic_warmup
        self._set_learning_rates(counter[0], warming)
        if counter == (config.critic_warmup, 0) and not warming:
            self.engine.restart_optimizer("policy")  # else its first steps would be those of an optimizer long at work
        tokens = rollout.mask_BT[minibatch].sum()
        if hasattr(self.engine.module, "value_reaches_trunk"):
            self.engine.module.value_reaches_trunk = not warming
        of_ptx = None
        if self.ptx is not None and not warming:
            _add(sums, self._ptx_passes(self.ptx, counter), tokens)
            of_ptx = self.engine.set_aside("policy") if self.engine.can_set_aside else None
        found: list[tuple[list[int], Tensor]] = []
        weights_BT = torch.zeros_like(rollout.mask_BT)
        weights_BT[minibatch] = ppo.token_weights(rollout.mask_BT[minibatch], config.loss_mean, config.max_new_tokens)
        parts = self.plan(minibatch, rollout.lengths, self.room, runtime.world)[runtime.rank]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            self.tell(
                f"training: step {counter[1] + 1} of {config.epochs * config.minibatches}, micro-batch {number + 1} of {len(parts)}"
            )
            with self.engine.accumulating(last):
                # A rank that has run out passes a row whose tokens weigh nothing: all must make the same passes.
                rows, idle = (part, False) if part else (minibatch[:1], True)
                logprobs_N, loss, measured = self._losses(rollout, rows, weights_BT, kl_coef, idle, warming)
                self.engine.backward(loss, last)
            _add(sums, measured, tokens)
            if not idle:
                found.append((rows, logprobs_N.detach()))
        if rollout.logprobs_BT is None:
            assert len(minibatch) == len(rollout), "of the other rows there are no old log-probabilities"
            self._keep_as_old(rollout, found)
        if of_ptx is not None:
            _add(sums, self._join_ptx(of_ptx), tokens)
        return self.engine.step()

    def _keep_as_old(self, rollout: Rollout, found: list[tuple[list[int], Tensor]]) -> None:
        """Make the log-probabilities of the first step, which this rank `found` a part of, the old ones. UserError, before the step, for NaN."""
        mine_BT = torch.zeros_like(rollout.mask_BT)
        for rows, logprobs_N in found:
            mine_BT[rows] = rollout.spread(logprobs_N, rows)
        logprobs_BT = self.runtime.sum(mine_BT)
        try:
            check_sizes({OF_POLICY: logprobs_BT}, "update")
        except UserError:
            self.engine.module.zero_grad(set_to_none=True)
            raise
        rollout.logprobs_BT = logprobs_BT

    def _losses(
        self, rollout: Rollout, rows: Sequence[int], weights_BT: Tensor, kl_coef: float, idle: bool, warming: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Log-probabilities (N,); the micro-batch's share of the minibatch's loss; sums over its tokens of what is logged."""
        config = self.config
        logprobs_N, entropy_N, values_N = self.forward(make_batch(rollout, rows, self.pad_id))
        assert rollout.advantages_BT is not None
        weights_N = rollout.flat(weights_BT, rows) * (0.0 if idle else 1.0)
        old_BT = rollout.logprobs_BT
        log_ratio_N = logprobs_N - (logprobs_N.detach() if old_BT is None else rollout.flat(old_BT, rows))
        losses_N, clipped_N = ppo.policy_losses(
            log_ratio_N,
            rollout.flat(rollout.advantages_BT, rows),
            config.clip,
            config.clip_high or config.clip,
            config.dual_clip,
        )
        if rollout.importance_BT is not None:
            losses_N = losses_N * rollout.flat(rollout.importance_BT, rows)
        policy = (weights_N * losses_N).sum()
        measured = {"step/policy/loss": policy}
        loss = policy
        if config.entropy_coef:  # a gradient of zeros would go through all logits, too
            loss = loss - config.entropy_coef * (weights_N * entropy_N).sum()
        if config.kl_in == "loss":
            assert rollout.ref_logprobs_BT is not None
            kl_N = ppo.kl_losses(logprobs_N - rollout.flat(rollout.ref_logprobs_BT, rows), config.kl_kind)
            measured["step/kl/loss"] = (weights_N * kl_N).sum()
            loss = loss + kl_coef * measured["step/kl/loss"]
        loss = loss * (0.0 if warming else 1.0)
        real_N = (weights_N > 0).to(weights_N)
        ratio_sum, square_sum, ratio_max = ppo.ratio_sums(log_ratio_N, real_N)
        measured |= {
            "tokens": real_N.sum(),
            "policy/clip_fraction": (clipped_N * real_N).sum(),
            "policy/approx_kl": (ppo.kl_estimate(-log_ratio_N, torch.zeros_like(log_ratio_N), "k3") * real_N).sum(),
            "policy/entropy": (entropy_N * real_N).sum(),
            "policy/ratio": ratio_sum,
            "ratio/squares": square_sum,
            "max/policy/ratio_max": ratio_max,
        }
        if values_N is not None:
            value, part = self._value_loss(rollout, rows, values_N, weights_N, real_N)
            loss, measured = loss + config.value_coef * value, measured | part
        return logprobs_N, loss, measured

    def _value_loss(
        self, rollout: Rollout, rows: Sequence[int], values_N: Tensor, weights_N: Tensor, real_N: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert rollout.values_BT is not None and rollout.returns_BT is not None
        losses_N, clipped_N = ppo.value_losses(
            values_N,
            rollout.flat(rollout.values_BT, rows),
            rollout.flat(rollout.returns_BT, rows),
            self.config.value_clip,
        )
        loss = (weights_N * losses_N).sum()
        return loss, {"step/critic/loss": loss, "critic/clip_fraction": (clipped_N * real_N).sum()}

    def _ptx_passes(self, ptx: PTXData, counter: tuple[int, int]) -> dict[str, Tensor]:
        """The gradient of the PTX loss, before those of the rollout: mean nats per token of the step's rows, cut as those are."""
        episodes, world = ptx.episodes(counter, self.runtime.device), self.runtime.world
        tokens = sum(map(len, episodes.responses))
        total = torch.zeros((), device=self.runtime.device)
        parts = self.plan(range(len(episodes)), episodes.lengths, self.room, world)[self.runtime.rank]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1 and self.engine.can_set_aside
            batch = make_batch(episodes, part or [0], self.pad_id)
            with self.engine.accumulating(last=False):
                logprobs_N, _, _ = self.engine(batch.tokens_bS, batch.before_N, batch.targets_N, 1.0, False)
                loss = -logprobs_N.sum() / tokens * (1.0 if part else 0.0)
                self.engine.backward(self.config.ptx_coef * loss, last)
            total += loss.detach()
        return {"step/ptx/loss": total}

    def _join_ptx(self, of_ptx: list[Tensor]) -> dict[str, Tensor]:
        """Add the PTX gradient to that of the rollout; this rank's share of the norms of both before that."""
        of_rollout, world = self.engine.gradients("policy"), self.runtime.world
        norms = {
            "step/ptx/grad_norm": self.engine.gradient_norm(of_ptx) / world,
            "step/ptx/rest_norm": self.engine.gradient_norm(of_rollout) / world,
        }
        for part, kept in zip(of_rollout, of_ptx, strict=True):
            part.add_(kept)
        return norms

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities, entropies and values of the response tokens, (N,) each."""
        return self.engine(batch.tokens_bS, batch.before_N, batch.targets_N, self.config.temperature)

    def trial_step(self) -> None:
        """One forward and backward pass on made-up tokens, without effect: the precision is chosen by its time."""
        config, rows = self.config, self.config.micro_batch_size
        room = self.room // rows
        length = min(config.max_new_tokens, room - 1)
        rollout = Rollout(
            [{"prompt_ids": [3] * (room - length)}] * rows,
            [[3] * length] * rows,
            list(range(rows)),
            torch.ones(rows, length, device=self.runtime.device),
            torch.ones(rows, device=self.runtime.device),
        )
        logprobs_N, _, values_N = self.forward(make_batch(rollout, range(rows), self.pad_id))
        (logprobs_N.sum() + (0 if values_N is None else values_N.sum())).backward()
        self.engine.module.zero_grad(set_to_none=True)

    def _set_learning_rates(self, number: int, warming: bool) -> None:
        """Linear to 0 over the updates, lowered by roll-backs; the critic may learn alone at first."""
        remaining = self.rate_factor * (1 - number / self.config.updates)
        groups = self.engine.optimizer.param_groups
        self.engine.set_lr(*(0.0 if warming and group.get("role") != "critic" else remaining for group in groups))

    def _metrics(self, sums: dict[str, Tensor], norms: list[float]) -> Metrics:
        total = {
            name: float(value) if name.startswith("max/") else float(self.runtime.sum(value))
            for name, value in sums.items()
        }
        tokens, squares = total.pop("tokens"), total.pop("ratio/squares")
        metrics: Metrics = {
            "policy/effective_samples": ppo.effective_sample_share(total["policy/ratio"], squares, tokens)
        }
        for name, value in total.items():
            if name.startswith("max/"):
                metrics[name.removeprefix("max/")] = max(self.runtime.gather_objects(value))
            else:
                metrics[name.removeprefix("step/")] = value / tokens
        metrics["train/grad_norm"] = sum(norms) / len(norms)
        if "ptx/grad_norm" in metrics:
            norm, rest = metrics.pop("ptx/grad_norm"), metrics.pop("ptx/rest_norm")
            metrics["ptx/grad_norm_ratio"] = norm / max(rest, 1e-12)
        metrics["train/lr"] = float(self.engine.optimizer.param_groups[0]["lr"])
        return metrics


def _add(sums: dict[str, Tensor], measured: dict[str, Tensor], tokens: Tensor) -> None:
    """Add a micro-batch's numbers in float64: sums over its tokens as they are; its parts of a number of the optimizer
    step (`step/...`) times the step's tokens, since all is divided by the tokens of all steps; of `max/...` the largest."""
    for name, value in measured.items():
        value = value.detach().double() * (tokens if name.startswith("step/") else 1)
        if name not in sums:
            sums[name] = value
        elif name.startswith("max/"):
            sums[name] = torch.maximum(sums[name], value)
        else:
            sums[name] = sums[name] + value
