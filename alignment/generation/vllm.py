"""Rollouts from vLLM servers: the second engine, for clusters. docs/generation.md says how to start the servers.

The policy's weights go to the servers through a folder that they share with the trainer; each sample is a request of
its own with a seed of its own, so that any server may answer it, and vLLM makes the batches. Not run against a real
server here: the tests speak to a fake one, which knows the fields of the real protocol.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from alignment.generation.sampling import Completion, Sampling
from alignment.generation.server import Description, OtherWeights, ServedWeights, Server
from launch.errors import UserError
from launch.exchange import Away, Backoff, Beat, Endpoint, Exchange, Failing, Notice, Say
from launch.seeding import derive_seed

T = TypeVar("T")
KEPT = 2
"""Generations of weights that stay in the folder: that which the servers have, and that which they are to load."""


class VLLMEngine:
    """A `RolloutEngine`. In a job of several processes one calls `refresh`, the others are given its `weights`.

    `beat` is called while this waits for a server, and its exceptions end the wait; `say` takes a line for the user.
    """

    def __init__(
        self,
        urls: Sequence[str],
        weights_folder: str | Path,
        seed: int = 0,
        concurrency: int = 64,
        timeout_s: float = 600.0,
        token: str = "",
        beat: Beat = lambda: None,
        say: Say = lambda line: None,
        backoff: Backoff | None = None,
    ) -> None:
        self.servers = [Server(Endpoint(url, timeout_s, token)) for url in urls]
        self.folder, self.concurrency = Path(weights_folder).absolute(), concurrency
        self.beat, self.say = beat, say
        self.backoff = backoff or Backoff(seed, "vllm")
        self.weights: ServedWeights | None = None
        """What the servers were told to load last."""
        self._notice = Notice(f"vLLM ({', '.join(urls)})", say)
        self._calls = 0
        self._written: list[Path] = []
        self._descriptions: list[Description] = []

    # ------------------------------------------------------------------------------------ the start

    def connect(self) -> list[Description]:
        """What the servers are. UserError when one does not answer, or would not sample as PPO needs it."""
        for server in self.servers if not self._descriptions else ():
            try:
                self._descriptions.append(server.describe())
            except Away as reason:
                raise UserError(
                    f"vllm.url: {server.url} does not answer ({reason}); start the server, or mend the address"
                ) from None
        return self._descriptions

    def check_room(self, tokens: int) -> None:
        """UserError unless every server takes a prompt and completion of so many tokens together."""
        for server, described in zip(self.servers, self.connect(), strict=True):
            if tokens > described.context:
                raise UserError(
                    f"vllm.url: {server.url} takes {described.context} tokens, a prompt with max_new_tokens has up to "
                    f"{tokens}; start the server with a larger --max-model-len, or shorten the prompts"
                )

    # ------------------------------------------------------------------------------------ weights

    def refresh(self, model: Any) -> None:
        """Write the weights of a model and have all servers load them. No request may be under way."""
        self.connect()
        first = self.weights is None
        version = f"{time.time_ns():x}"
        folder = self._write(model, version)
        self.weights = weights = ServedWeights(folder, version, model.config.get_text_config().vocab_size)

        def load(number: int, attempt: int) -> bool:
            server = self.servers[number]
            try:
                return server.load(weights)
            except Failing as reason:
                if not first:
                    raise
                raise UserError(
                    f"vllm.weights_folder: {server.url} cannot load {folder} ({reason}); name a folder that the trainer "
                    "and all servers see under the same path"
                ) from None

        self._ask_all(load, len(self.servers))
        self._prune()

    def _write(self, model: Any, version: str) -> Path:
        """A folder with a name of its own, there at once and whole: a server may cache what a path held before."""
        if not self._written:
            self.remove_weights()
        aside, folder = self.folder / f"partial-{version}", self.folder / f"weights-{version}"
        model.save_pretrained(aside)
        os.rename(aside, folder)
        self._written.append(folder)
        return folder

    def _prune(self) -> None:
        for folder in self._written[:-KEPT]:
            shutil.rmtree(folder, ignore_errors=True)
        self._written = self._written[-KEPT:]

    def remove_weights(self) -> None:
        """Clear the folder of weights that were written, by this run or by one before that was killed."""
        for pattern in ("weights-*", "partial-*"):
            for folder in self.folder.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------ samples

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        purpose: str,
        step: int,
        sample_indices: Sequence[int],
    ) -> list[Completion]:
        """As `RolloutEngine.generate`. The servers take turns by sample index; what one does not answer, the next is asked."""
        weights, described = self.weights, self.connect()
        assert weights is not None, "refresh the engine before it samples"
        self.check_room(max(map(len, prompts), default=0) + sampling.max_new_tokens)

        def complete(number: int, attempt: int) -> Completion:
            index = sample_indices[number]
            turn = (index + attempt) % len(self.servers)
            server, name = self.servers[turn], described[turn].model
            own = derive_seed(seed, purpose, step, index)
            try:
                return server.complete(name, prompts[number], sampling, own, weights)
            except OtherWeights:
                if server.load(weights):
                    self.say(f"vLLM ({server.url}) was started again, and has the policy's weights again")
                return server.complete(name, prompts[number], sampling, own, weights)

        return self._ask_all(complete, len(prompts))

    def _ask_all(self, ask: Callable[[int, int], T], count: int) -> list[T]:
        self._calls += 1
        counters = (self._calls, int(os.environ.get("RANK", "0")))
        return Exchange(ask, self.backoff, self._notice, counters).run(count, self.concurrency, self.beat)
