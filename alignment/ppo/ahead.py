"""One-step-off rollouts: the responses of the next update are sampled in a thread during this one.

They come from a copy of the policy with the weights before this update, so they are off-policy by one update. Each
token's log-probability under that copy goes along, and the loss is corrected by truncated importance weights
(Noukhovitch et al. 2025, "Asynchronous RLHF"; `objectives.truncated_importance`). What is sampled depends on the
weights, the number of the update and the episode alone, not on when the threads run.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from alignment.ppo.background import in_background
from alignment.ppo.sampling import Sampled
from launch.runtime import Runtime


class Ahead:
    """Keeps the rollout of the present update until the next one, and samples that of the next."""

    def __init__(self, runtime: Runtime, refresh: Callable[[], Any], sample: Callable[[int], Sampled]) -> None:
        """`refresh` gives the sampler the policy's weights (all ranks together); `sample(number)` uses them."""
        self.runtime, self._refresh, self._sample = runtime, refresh, sample
        self._flying: dict[int, Future[Sampled]] = {}

    def take(self, number: int, last: int) -> Sampled:
        """This rank's responses for update `number`; those for the next one, if there is one, begin to be sampled."""
        if number not in self._flying:
            self._refresh()
            self._start(number)
        current = self._flying[number].result()
        self._flying = {number: self._flying[number]}  # until the update is made: a checkpoint may be asked for before
        self._refresh()
        if number + 1 < last:
            self._start(number + 1)
        return current

    def _start(self, number: int) -> None:
        self._flying[number] = in_background(lambda: self._sample(number), self.runtime, daemon=False)

    def settle(self) -> None:
        """Wait until nothing is being sampled: the sampler's weights are about to change."""
        for flying in self._flying.values():
            flying.exception()

    def state(self, number: int) -> dict[str, torch.Tensor] | None:
        """The responses of all ranks for update `number`, for a checkpoint; None when none were sampled yet."""
        if number not in self._flying:
            return None
        mine = self._flying[number].result()
        parts = self.runtime.gather_objects((mine.responses, mine.logprobs))
        responses, logprobs = ([row for part in parts for row in part[i]] for i in (0, 1))
        return {
            "lengths": torch.tensor([len(ids) for ids in responses]),
            "tokens": torch.tensor([token for ids in responses for token in ids]),
            "logprobs": torch.tensor([value for values in logprobs for value in values]),
        }

    def load(self, state: dict[str, torch.Tensor] | None, number: int) -> None:
        """Go on with the responses of a checkpoint: this rank takes its share, on any number of processes."""
        if state is None:
            return
        lengths = state["lengths"].tolist()
        share = range(
            self.runtime.rank * len(lengths) // self.runtime.world,
            (self.runtime.rank + 1) * len(lengths) // self.runtime.world,
        )
        tokens, logprobs = state["tokens"].split(lengths), state["logprobs"].split(lengths)
        done: Future[Sampled] = Future()
        done.set_result(Sampled([tokens[i].tolist() for i in share], [logprobs[i].tolist() for i in share]))
        self._flying = {number: done}
