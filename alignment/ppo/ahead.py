"""One-step-off rollouts: the responses of the next update are sampled in a thread during this one.

They come from a copy of the policy with the weights before this update, so they are off-policy by one update. Each
token's log-probability under that copy goes along, and the loss is corrected by truncated importance weights
(Noukhovitch et al. 2025, "Asynchronous RLHF"; `objectives.truncated_importance`). What is sampled depends on the
weights, the number of the update and the episode alone, not on when the threads run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from alignment.ppo.background import in_background
from alignment.ppo.rollout import Prompt
from alignment.ppo.samplers import Sampler
from alignment.ppo.sampling import Sampled, share_of
from launch.runtime import Runtime


class Ahead:
    """Keeps the rollout of the present update until it is made, and samples that of the next. A `Sampler` itself."""

    def __init__(
        self,
        runtime: Runtime,
        sampler: Sampler,
        draw: Callable[[int, Any], Sampled],
        wait: Callable[[Future[Sampled]], Sampled],
        remote: bool,
    ) -> None:
        """`sampler`: a copy of the policy. `draw(number, model)` samples this rank's responses for an update.

        `wait` waits for a thread on all ranks together. `remote`: servers sample, which may be away for ever: neither the
        end of the process nor a checkpoint waits for them.
        """
        self.runtime, self._sampler, self._draw, self._wait, self._remote = runtime, sampler, draw, wait, remote
        self._flying: dict[int, Future[Sampled]] = {}

    def sync(self) -> Any:
        """The copy with the policy's present weights, once what is being sampled from those before is there."""
        self._settle()
        return self._sampler.sync()

    def _settle(self) -> None:
        for flying in self._flying.values():
            self._wait(flying)

    def take(self, number: int, last: int) -> Sampled:
        """This rank's responses for update `number`; those for the next one, if there is one, begin to be sampled."""
        if number not in self._flying:
            self._start(number)
        current = self._flying[number]
        self._flying = {number: current}  # until the update is made: a checkpoint may be asked for before
        sampled = self._wait(current)
        if number + 1 < last:
            self._start(number + 1)
        return sampled

    def _start(self, number: int) -> None:
        model = self.sync()
        self._flying[number] = in_background(lambda: self._draw(number, model), self.runtime, self._remote)

    def state(self, number: int) -> dict[str, torch.Tensor] | None:
        """The responses of all ranks for update `number`, for a checkpoint; None when none were sampled yet."""
        if number not in self._flying:
            return None
        flying = self._flying[number]
        if self._remote and self.runtime.any_true(not flying.done() or flying.exception() is not None):
            return None  # sampled anew after a resume, from the weights of the checkpoint
        mine = flying.result()
        parts = self.runtime.gather_objects((mine.responses, mine.logprobs))
        responses, logprobs = ([row for part in parts for row in part[i]] for i in (0, 1))
        return {
            "lengths": torch.tensor([len(ids) for ids in responses]),
            "tokens": torch.tensor([token for ids in responses for token in ids]),
            "logprobs": torch.tensor([value for values in logprobs for value in values]),
        }

    def load(
        self, state: dict[str, torch.Tensor] | None, number: int, prompts: Sequence[Prompt], samples_per_prompt: int
    ) -> None:
        """Go on with the responses of a checkpoint, to `prompts`: this rank takes its share, on any number of processes."""
        self._settle()
        self._flying = {}
        if state is None:
            return
        share = share_of(prompts, samples_per_prompt, self.runtime.rank, self.runtime.world)
        lengths = state["lengths"].tolist()
        tokens, logprobs = state["tokens"].split(lengths), state["logprobs"].split(lengths)
        responses = [tokens[i].tolist() for i in share.numbers]
        done: Future[Sampled] = Future()
        done.set_result(Sampled(share, responses, [logprobs[i].tolist() for i in share.numbers]))
        self._flying = {number: done}
