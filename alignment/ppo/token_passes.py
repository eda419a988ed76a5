"""Scoring's forward passes: log-probabilities of policy and reference, and values, of a rollout's response tokens.

Shapes: B episodes, T response tokens; N response tokens of a pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignment.ppo.learner import Learner
from alignment.ppo.rollout import Rollout, make_batch


class TokenPasses:
    """Each model reads each episode once. `reference` is None in a replay, whose rollouts have it all."""

    def __init__(self, learner: Learner, reference: Any) -> None:
        self.learner, self.reference = learner, reference
        self.config, self.runtime = learner.config, learner.runtime

    def has_all(self, rollout: Rollout) -> bool:
        """Whether a rollout has the log-probabilities that advantages and update need, or its own are left to the update."""
        waits = self._leaves_policy(rollout) and rollout.left_at == self.learner.moves
        return rollout.ref_logprobs_BT is not None and (waits or rollout.logprobs_BT is not None)

    def _leaves_policy(self, rollout: Rollout) -> bool:
        """Whether the old log-probabilities are to be those of the first training pass. Importance weights need them before."""
        return self.config.first_pass_is_old and rollout.engine_logprobs_BT is None

    @torch.no_grad()
    def read_shared(self, rollout: Rollout) -> None:
        """Set what `has_all` asks for, and values, of the episodes of all ranks, which share the passes as a step's are shared."""
        rank, world, leaves = self.runtime.rank, self.runtime.world, self._leaves_policy(rollout)
        room = self._room(leaves or self._cut_alike())
        parts = self.learner.plan(range(len(rollout)), rollout.lengths, room, world)[rank]
        found = self._read(rollout, parts, not leaves)
        _set(rollout, {name: self.runtime.sum(values_BT) for name, values_BT in found.items()})
        rollout.left_at = self.learner.moves if leaves else None

    @torch.no_grad()
    def read_own(self, rollout: Rollout) -> None:
        """Set all of them of this rank's own episodes. All ranks call this; they may have other numbers of episodes."""
        parts = self.learner.plan(range(len(rollout)), rollout.lengths, self._room(alike=False), 1)[0]
        most = max(self.runtime.gather_objects(len(parts)))
        _set(rollout, self._read(rollout, [*parts, *([] for _ in range(most - len(parts)))], True))

    def _read(self, rollout: Rollout, parts: list[list[int]], with_policy: bool) -> dict[str, Tensor]:
        """What the models say of the response tokens of some episodes, (B, T) each; 0 elsewhere.

        `parts`: the episodes of each pass of this rank. Under ZeRO-3 all ranks make as many, and the last may be empty.
        """
        found: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            self.learner.tell(f"log-probabilities: pass {number + 1} of {len(parts)}")
            batch = make_batch(rollout, part or [0], self.learner.pad_id)
            given: dict[str, Tensor | None] = {}
            if with_policy:
                given["policy"], _, given["values"] = self.learner.forward(batch)
            with self.runtime.autocast():
                where = batch.tokens_bS, batch.before_N, batch.targets_N
                given["reference"] = self.reference(*where, self.config.temperature)
            for name, values_N in given.items():
                if values_N is None:
                    continue
                into_BT = found.setdefault(name, torch.zeros_like(rollout.mask_BT))
                if part:
                    into_BT[part] = rollout.spread(values_N, part)
        return found

    def _cut_alike(self) -> bool:
        """Whether a rollout's passes are cut as those of the first optimizer step are. (They are shared out alike in any case.)

        Products round otherwise in another batch shape, so that the ratio would be off 1 (in bf16 up to 1.04 on a tiny
        model): where that step has all rows, it is exactly 1 like this. The reference's too: rounding apart would be a KL. Not in
        fp32 on a GPU, where larger passes are faster and the rounding is some 1e-6; on a CPU they are not faster, and
        `states_at` cuts them anyway.
        """
        rounds = self.runtime.precision == "bf16" or self.runtime.device.type == "cpu"
        return rounds and self.config.minibatches == 1

    def _room(self, alike: bool) -> int:
        """Padded tokens of a pass: those of a micro-batch, or as `forward_batch_size` allows."""
        of_one = self.learner.room // self.config.micro_batch_size
        return of_one * (self.config.micro_batch_size if alike else self.config.forward_batch_size)


def _set(rollout: Rollout, found: dict[str, Tensor]) -> None:
    rollout.ref_logprobs_BT = found["reference"]
    rollout.logprobs_BT, rollout.values_BT = found.get("policy"), found.get("values")
