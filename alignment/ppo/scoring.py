"""Rewards of this rank's episodes: the sources work in a thread, and may be asked while the next responses are sampled.

Shapes: B episodes of this rank, T_i tokens of completion i.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.ppo.background import in_background
from alignment.ppo.rollout import Prompt, Rollout
from alignment.reward.sources.combined import CombinedSource, combine
from alignment.reward.sources.protocol import Episodes, RewardSource, Scores
from launch.runtime import Runtime


class EarlyScores:
    """The scores of single chunks of a rollout, asked for as soon as a chunk is sampled. One chunk is scored at a time."""

    def __init__(
        self, sources: Mapping[str, RewardSource], tokenizer: PreTrainedTokenizerBase, runtime: Runtime
    ) -> None:
        self._sources, self._tokenizer = sources, tokenizer
        self._chunks: queue.SimpleQueue[tuple[list[int], Episodes] | None] = queue.SimpleQueue()
        self.scores = in_background(self._work, runtime, daemon=True)
        """Of all chunks, by the name of the source, once `close` was called."""

    def add(self, rows: Sequence[int], prompts: Sequence[Prompt], responses: Sequence[list[int]]) -> None:
        """Ask for the scores of a chunk; `rows` says where its episodes stand in the rollout."""
        self._chunks.put((list(rows), Episodes.decode(self._tokenizer, prompts, responses)))

    def close(self) -> None:
        """There are no more chunks."""
        self._chunks.put(None)

    def _work(self) -> dict[str, Scores]:
        rows: list[int] = []
        lengths: list[int] = []
        parts: dict[str, list[Scores]] = {name: [] for name in self._sources}
        while (chunk := self._chunks.get()) is not None:
            rows += chunk[0]
            lengths += [len(ids) for ids in chunk[1].completion_ids]
            for name, source in self._sources.items():
                parts[name].append(source.score(chunk[1]))
        return {name: join_chunks(chunks, rows, lengths) for name, chunks in parts.items()}


class Scorer:
    """Asks the sources of reward. With `overlap`, those that say they work `row_by_row` are asked chunk by chunk.

    That is what services and rules do. A function may make one row's reward depend on the others that it is given, such
    as by taking their mean off: it is given all episodes of this rank. So are reward models, which would only slow the
    sampling down, and the last bits of whose scores depend on how episodes are batched.
    """

    def __init__(
        self, source: RewardSource, tokenizer: PreTrainedTokenizerBase, runtime: Runtime, overlap: bool
    ) -> None:
        self.source, self.tokenizer, self.runtime = source, tokenizer, runtime
        combined = isinstance(source, CombinedSource)
        self._parts = source.sources if combined else {source.name: (1.0, source)}  # type: ignore[attr-defined]
        single = {name: part for name, (_, part) in self._parts.items() if getattr(part, "row_by_row", False)}
        self._early = single if overlap else {}

    @property
    def overlaps(self) -> bool:
        """Whether any source is asked while responses are sampled."""
        return bool(self._early)

    def begin_early(self) -> EarlyScores | None:
        """Where the chunks of a rollout go that is about to be sampled; None when no source is asked early."""
        return EarlyScores(self._early, self.tokenizer, self.runtime) if self._early else None

    def start(self, rollout: Rollout) -> Future[Scores]:
        """The scores of a rollout's episodes, in a thread."""
        return in_background(lambda: self._score(rollout), self.runtime, daemon=True)

    def _score(self, rollout: Rollout) -> Scores:
        episodes = Episodes.decode(self.tokenizer, rollout.prompts, rollout.responses)
        if rollout.early is None:
            return self.source.score(episodes)
        early = rollout.early.result()
        parts = [
            (weight, early[name] if name in early else source.score(episodes))
            for name, (weight, source) in self._parts.items()
        ]
        return combine(parts, [len(ids) for ids in episodes.completion_ids])


def join_chunks(chunks: Sequence[Scores], rows: Sequence[int], lengths: Sequence[int]) -> Scores:
    """The scores of a source for all B episodes, from those of chunks whose episodes stand at `rows` one after the other.

    `lengths`: tokens of the completions, in the order of `rows`. What only some chunks have to log is left out.
    """
    order = torch.argsort(torch.tensor(rows))

    def join(columns: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        common = [name for name in columns[0] if all(name in column for column in columns)]
        return {name: torch.cat([column[name] for column in columns])[order] for name in common}

    parts = join([{"total": scores.total_B, "rest": scores.last_token_B} for scores in chunks])
    token_rewards = None
    if any(scores.token_rewards is not None for scores in chunks):
        given = [r for scores in chunks for r in (scores.token_rewards or [None] * len(scores.total_B))]
        filled = [torch.zeros(n) if r is None else r for r, n in zip(given, lengths, strict=True)]
        token_rewards = [filled[i] for i in order.tolist()]
    components, extras = join([s.components for s in chunks]), join([s.extras for s in chunks])
    return Scores(parts["total"], components, token_rewards, extras, parts["rest"])
