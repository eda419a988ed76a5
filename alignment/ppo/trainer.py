"""PPO from human feedback. `train` is the whole algorithm; each phase it calls can be called alone.

Shapes: B episodes of the global batch, P prompt tokens, T response tokens, S = P + T.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from alignment.generation import Sampling, generate
from alignment.ppo import objectives as ppo
from alignment.ppo.config import PPOConfig
from alignment.ppo.models import ActorCritic, Roles, place_frozen, response_logprobs
from alignment.ppo.rollout import Rollout, make_rollout, minibatch_parts
from evaluation.loading import plain_weights
from launch.checkpoint import Checkpoint, CheckpointStore
from launch.engine import Engine
from launch.errors import UserError
from launch.runtime import Runtime
from launch.seeding import permutation

Metrics = dict[str, float]


class PPOTrainer:
    """Trains `roles.policy` on `prompts` (token ids). All ranks make the same calls with the same arguments."""

    def __init__(self, config: PPOConfig, roles: Roles, prompts: Sequence[Sequence[int]], runtime: Runtime) -> None:
        self.config, self.roles, self.prompts, self.runtime = config, roles, prompts, runtime
        if config.batch_size % runtime.world:
            raise UserError(
                f"batch_size: {config.batch_size} is not a multiple of {runtime.world} processes; choose one that is"
            )
        self.update_number = 0
        self.kl = ppo.KLController(config.kl_coef, config.kl_target, config.kl_horizon)
        self.sampling = Sampling(
            config.max_new_tokens, config.temperature, roles.tokenizer.eos_token_id, roles.tokenizer.pad_token_id
        )
        self.engine = Engine(
            runtime,
            ActorCritic(roles.policy, roles.critic),
            self._make_optimizer(),
            config.max_grad_norm,
            config.micro_batch_size,
        )
        self.reference = place_frozen(roles.reference, runtime)
        self._sampler = self._make_sampler()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        groups = [
            {"params": list(self.roles.policy.parameters()), "lr": config.learning_rate},
            {"params": list(self.roles.critic.parameters()), "lr": config.critic_learning_rate or config.learning_rate},
        ]
        return torch.optim.AdamW(groups, eps=config.adam_eps, weight_decay=0.0)

    # ------------------------------------------------------------------------------------ the algorithm

    def train(self, after_update: Callable[[int, Metrics], Any] = lambda number, metrics: None) -> None:
        """Run the remaining updates. `after_update(number, metrics)` logs, saves and may raise to stop."""
        while self.update_number < self.config.updates:
            rollout = self.rollout(self.next_prompts())
            rollout = self.score(rollout)
            rollout = self.advantages(rollout)
            metrics = {**self.rollout_metrics(rollout), **self.update(rollout)}
            self.update_number += 1
            after_update(self.update_number, metrics)

    def next_prompts(self) -> list[int]:
        """Prompt numbers of the next rollout: the pass over the prompts is shuffled anew in each epoch, none is skipped."""
        first, n = self.update_number * self.config.batch_size, len(self.prompts)
        episodes = range(first, first + self.config.batch_size)
        orders = {epoch: permutation(n, self.config.seed, "ppo-prompts", epoch) for epoch in {e // n for e in episodes}}
        return [int(orders[e // n][e % n]) for e in episodes]

    def rollout(self, prompt_numbers: Sequence[int]) -> Rollout:
        """Sample a response to each prompt. Episodes are split over the ranks; this rank's are returned."""
        share = len(prompt_numbers) // self.runtime.world
        mine = range(self.runtime.rank * share, (self.runtime.rank + 1) * share)
        prompts = [self.prompts[prompt_numbers[i]] for i in mine]
        with self._timed() as clock, self.runtime.autocast():
            model = self._sync_sampler()
            responses = generate(
                model,
                prompts,
                self.sampling,
                self.config.seed,
                "ppo-rollout",
                self.update_number,
                mine,
                self.config.forward_batch_size,
            )
        rollout = make_rollout(prompts, responses, self.sampling.pad_id, self.sampling.eos_id, self.runtime)
        rollout.seconds["rollout"] = clock()
        return rollout

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Rollout:
        """Add old log-probabilities, values, reference log-probabilities and scores; gather the ranks' episodes.

        The old log-probabilities come from the training forward pass, not from generation: the kernels differ, and
        the ratio would not be 1 at the first step (checklist item 11).
        """
        with self._timed() as clock:
            parts = [self._score_rows(rollout.rows(rows)) for rows in self._forward_slices(len(rollout))]
            rollout.logprobs_BT, rollout.values_BT, rollout.ref_logprobs_BT = (
                torch.cat(column) for column in zip(*parts, strict=True)
            )
            with self.runtime.autocast():
                rollout.scores_B = self._rewards(rollout).to(self.runtime.device)
            gathered = rollout.gather(self.runtime)
        gathered.seconds["score"] = clock()
        return gathered

    def _score_rows(self, rows: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        logprobs_BT, _, values_BT = self.engine(rows.tokens_BS, rows.mask_BS, rows.length, self.config.temperature)
        with self.runtime.autocast():
            ref_logprobs_BT, _ = response_logprobs(
                self.reference, rows.tokens_BS, rows.mask_BS, rows.length, self.config.temperature
            )
        return logprobs_BT, values_BT, ref_logprobs_BT

    def _rewards(self, rollout: Rollout) -> Tensor:
        """Scores of this rank's episodes: on the token ids, or on text when the reward model has another tokenizer."""
        judge, tokenizer = self.roles.reward, self.roles.tokenizer
        prompt_width = rollout.tokens_BS.shape[1] - rollout.length
        if judge.same_tokenizer(tokenizer):
            return judge.score_tokens(rollout.tokens_BS, rollout.mask_BS, batch_size=self.config.forward_batch_size)
        rows = zip(rollout.tokens_BS.tolist(), rollout.mask_BS.tolist(), strict=True)
        real = [
            (
                [t for t, m in zip(r[:prompt_width], k, strict=False) if m],
                [t for t, m in zip(r[prompt_width:], k[prompt_width:], strict=True) if m],
            )
            for r, k in rows
        ]
        prompts, completions = zip(
            *[(tokenizer.decode(p), tokenizer.decode(c, skip_special_tokens=True)) for p, c in real], strict=True
        )
        return torch.as_tensor(judge.score(list(prompts), list(completions), ended=rollout.finished_B.bool().tolist()))

    def advantages(self, rollout: Rollout) -> Rollout:
        """Turn scores into token rewards, advantages (whitened over the global batch) and returns."""
        config, mask_BT = self.config, rollout.response_mask_BT
        kl_BT = ppo.kl_estimate(rollout.logprobs_BT, rollout.ref_logprobs_BT, "k1")
        scores_B = ppo.apply_missing_eos(
            rollout.scores_B, rollout.finished_B, config.missing_eos, config.missing_eos_penalty
        )
        rewards_BT = ppo.token_rewards(scores_B, kl_BT, mask_BT, self.kl.coef)
        if config.whiten_rewards:
            rewards_BT = ppo.masked_whiten(rewards_BT, mask_BT, shift_mean=False)
        advantages_BT, returns_BT = ppo.gae(rewards_BT, rollout.values_BT, mask_BT, config.gamma, config.gae_lambda)
        rollout.rewards_BT, rollout.returns_BT = rewards_BT, returns_BT
        rollout.advantages_BT = ppo.masked_whiten(advantages_BT, mask_BT)
        return rollout

    def update(self, rollout: Rollout) -> Metrics:
        """`epochs` passes over the rollout in `minibatches` optimizer steps each. Returns token-weighted means over all of them."""
        config = self.config
        sums: dict[str, Tensor] = {}
        norms: list[float] = []
        with self._timed() as clock:
            for epoch in range(config.epochs):
                order = permutation(len(rollout), config.seed, "ppo-minibatch", self.update_number, epoch)
                for minibatch in order.reshape(config.minibatches, -1):
                    norms.append(self._minibatch_step(rollout, minibatch.tolist(), sums))
            seconds = clock()
        self.kl.update(self._sequence_kl(rollout), len(rollout))
        total = {name: float(self.runtime.sum(value.detach().double())) for name, value in sums.items()}
        means = {name: value / total["tokens"] for name, value in total.items() if name != "tokens"}
        means["train/grad_norm"] = sum(norms) / len(norms)
        self._check_finite(means)
        rate = total["tokens"] / seconds
        return {
            **means,
            "train/lr": self.optimizer_lr(),
            "perf/update_seconds": seconds,
            "perf/update_tokens_per_second": rate,
        }

    def _check_finite(self, means: Metrics) -> None:
        """End the run on every rank (the means are global) before NaN weights push good checkpoints out."""
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"update {self.update_number + 1}: {broken[0]} is {means[broken[0]]}, so the weights are lost; start in another "
                "folder with a lower learning_rate or a higher kl_coef (the checkpoints before this update are intact)"
            )

    def _minibatch_step(self, rollout: Rollout, minibatch: list[int], sums: dict[str, Tensor]) -> float:
        """One optimizer step: micro-batches, each loss divided by the token count of the global minibatch."""
        tokens = rollout.response_mask_BT[minibatch].sum()
        warming = self.update_number < self.config.critic_warmup
        remaining = 1 - self.update_number / self.config.updates
        self.engine.set_lr(0.0 if warming else remaining, remaining)
        parts = minibatch_parts(minibatch, self.runtime, self.config.micro_batch_size)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            rows = rollout.rows(torch.tensor(part or [0], device=self.runtime.device))
            mask_BT = rows.response_mask_BT if part else torch.zeros_like(rows.response_mask_BT)
            with self.engine.accumulating(last):
                loss, measured = self._losses(rows, mask_BT, 0.0 if warming else 1.0)
                self.engine.backward(loss / tokens, last)
            for name, value in measured.items():
                sums[name] = (
                    sums.get(name, torch.zeros((), dtype=torch.float64, device=value.device)) + value.detach().double()
                )
        return self.engine.step()

    def _losses(self, rows: Rollout, mask_BT: Tensor, policy_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, summed over its tokens, and what is logged of it, summed likewise."""
        config = self.config
        logprobs_BT, entropy_BT, values_BT = self.engine(rows.tokens_BS, rows.mask_BS, rows.length, config.temperature)
        policy, clipped = ppo.policy_loss_sum(logprobs_BT, rows.logprobs_BT, rows.advantages_BT, mask_BT, config.clip)
        value, value_clipped = ppo.value_loss_sum(
            values_BT, rows.values_BT, rows.returns_BT, mask_BT, config.value_clip
        )
        # approx-KL to the rollout's policy, k3 (Schulman): E[(r - 1) - log r] with r = new / old
        moved_BT = ppo.kl_estimate(rows.logprobs_BT, logprobs_BT, "k3")
        measured = {
            "tokens": mask_BT.sum(),
            "policy/loss": policy,
            "policy/clip_fraction": clipped,
            "policy/approx_kl": (moved_BT * mask_BT).sum(),
            "policy/entropy": (entropy_BT * mask_BT).sum(),
            "critic/loss": value,
            "critic/clip_fraction": value_clipped,
        }
        return policy_weight * policy + config.value_coef * value, measured

    def trial_step(self) -> None:
        """One forward and backward pass on made-up tokens, without effect: the precision is chosen by its time."""
        length = self.config.max_new_tokens
        shape = (self.config.micro_batch_size, max(map(len, self.prompts)) + length)
        tokens_BS = (
            torch.arange(shape[0] * shape[1], device=self.runtime.device).reshape(shape)
            % self.roles.policy.config.vocab_size
        )
        logprobs_BT, _, values_BT = self.engine(tokens_BS, torch.ones_like(tokens_BS), length, self.config.temperature)
        (logprobs_BT.sum() + values_BT.sum()).backward()
        self.engine.module.zero_grad(set_to_none=True)

    # ------------------------------------------------------------------------------------ what is logged

    def rollout_metrics(self, rollout: Rollout) -> Metrics:
        """Means over the global rollout; sequence KL in nats."""
        mask_BT = rollout.response_mask_BT
        k3_BT = ppo.kl_estimate(rollout.logprobs_BT, rollout.ref_logprobs_BT, "k3")
        tokens = float(mask_BT.sum())
        metrics = {
            "reward/score": float(rollout.scores_B.mean()),
            "reward/score_std": float(rollout.scores_B.std(unbiased=False)),
            "reward/total": float((rollout.rewards_BT * mask_BT).sum(1).mean()),
            "kl/k1": self._sequence_kl(rollout),
            "kl/k3": float((k3_BT * mask_BT).sum(1).mean()),
            "kl/coef": self.kl.coef,
            "critic/explained_variance": float(ppo.explained_variance(rollout.values_BT, rollout.returns_BT, mask_BT)),
            "rollout/length": tokens / len(rollout),
            "rollout/missing_eos_rate": float(1 - rollout.finished_B.float().mean()),
        }
        for phase, seconds in rollout.seconds.items():
            metrics[f"perf/{phase}_seconds"] = seconds
            metrics[f"perf/{phase}_tokens_per_second"] = tokens / seconds
        return metrics

    def _sequence_kl(self, rollout: Rollout) -> float:
        k1_BT = ppo.kl_estimate(rollout.logprobs_BT, rollout.ref_logprobs_BT, "k1")
        return float((k1_BT * rollout.response_mask_BT).sum(1).mean())

    def optimizer_lr(self) -> float:
        """Learning rate of the policy in the last step."""
        return float(self.engine.optimizer.param_groups[0]["lr"])

    # ------------------------------------------------------------------------------------ state

    def save(self, store: CheckpointStore) -> bool:
        """Checkpoint everything that the next update depends on; randomness is derived from the update's number."""
        return self.engine.save(
            store, self.update_number, {"update_number": self.update_number, "kl_coef": self.kl.coef}
        )

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on after a checkpoint."""
        extra = self.engine.load(checkpoint)
        self.update_number, self.kl.coef = extra["update_number"], extra["kl_coef"]

    # ------------------------------------------------------------------------------------ helpers

    def _make_sampler(self) -> Any:
        """The model that generates: the policy itself, or under ZeRO-3 a whole copy (its own parts are spread over the ranks)."""
        if self.runtime.zero_stage != 3:
            return None
        with plain_weights():
            copied = type(self.roles.policy)(copy.deepcopy(self.roles.policy.config))
        return copied.to(self.runtime.device).eval().requires_grad_(False)

    def _sync_sampler(self) -> Any:
        """The sampler with the policy's present weights: one gather for a rollout, then no rank waits for another."""
        policy = self.engine.module.policy
        if self._sampler is None:
            return policy
        with self.engine.gathered(policy):
            self._sampler.load_state_dict(policy.state_dict())
        return self._sampler

    def _forward_slices(self, rows: int) -> list[slice]:
        size = self.config.forward_batch_size
        return [slice(start, start + size) for start in range(0, rows, size)]

    @contextmanager
    def _timed(self) -> Iterator[Callable[[], float]]:
        """A clock that waits for the device."""
        start = time.perf_counter()

        def seconds() -> float:
            if self.runtime.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

        yield seconds
