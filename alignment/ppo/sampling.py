"""Drawing the responses of a rollout on one rank. Nothing here makes a collective call: it may run in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from alignment.generation import Completion, DecodeGraphs, LocalEngine, RolloutEngine, Sampling, VLLMEngine
from alignment.generation.prompts import check_lengths
from alignment.ppo.config import PPOConfig
from alignment.ppo.rollout import Prompt
from alignment.ppo.scoring import EarlyScores


@dataclass(frozen=True)
class Share:
    """The episodes of a rollout that one rank samples: a prompt each, and their numbers in the global batch."""

    prompts: list[Prompt]
    numbers: list[int]


def share_of(prompts: Sequence[Prompt], samples_per_prompt: int, rank: int, world: int) -> Share:
    """A rank's share when each prompt is answered `samples_per_prompt` times. ValueError when they cannot be split."""
    count = len(prompts) * samples_per_prompt
    if count % world:
        raise ValueError(f"rollout: {count} episodes cannot be split over {world} processes")
    numbers = list(range(rank * count // world, (rank + 1) * count // world))
    return Share([prompts[number // samples_per_prompt] for number in numbers], numbers)


@dataclass(frozen=True)
class Sampled:
    """A rank's responses, as token ids with the EOS that ended them."""

    share: Share
    responses: list[list[int]]
    logprobs: list[list[float]]
    """Of each token under the weights that sampled it, nats."""
    early: EarlyScores | None = None
    """The rewards that are being asked for already."""


def draw(
    policy: PreTrainedModel | VLLMEngine,
    share: Share,
    sampling: Sampling,
    config: PPOConfig,
    update: int,
    early: EarlyScores | None = None,
    purpose: str = "ppo-rollout",
    tell: Callable[[str], Any] = lambda text: None,
    graphs: DecodeGraphs | None = None,
) -> Sampled:
    """Sample the responses of update number `update`, by the random numbers of `purpose`. With `early` each batch is handed on as soon as it is there.

    The batches are those that the engine makes of the whole share. `tell` is told how far the sampling has come.
    `graphs` are kept for the next rollout. With `early` none are captured: a source may wait for the device meanwhile.
    """
    ids = [prompt["prompt_ids"] for prompt in share.prompts]
    order = sorted(range(len(ids)), key=lambda row: (len(ids[row]), tuple(ids[row])))
    size = config.forward_batch_size if early is not None else len(order)
    sampled = 0

    def advance(n: int) -> None:
        nonlocal sampled
        sampled += n
        tell(f"sampling: {sampled} of {len(ids)} episodes")

    graphs = DecodeGraphs(None) if early is not None else graphs
    engine: RolloutEngine
    if isinstance(policy, VLLMEngine):
        engine = policy
    else:
        # here, since the engine is given them in another order
        of_prompts = [number // config.samples_per_prompt for number in share.numbers]
        check_lengths(policy, ids, sampling.max_new_tokens, of_prompts)
        engine = LocalEngine(policy, config.forward_batch_size, advance, graphs)
    done: dict[int, Completion] = {}
    try:
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            numbers = [share.numbers[row] for row in rows]
            drawn = engine.generate([ids[row] for row in rows], sampling, config.seed, purpose, update, numbers)
            done.update(zip(rows, drawn, strict=True))
            if early is not None:
                early.add(rows, [share.prompts[row] for row in rows], [completion.token_ids for completion in drawn])
    finally:
        if early is not None:
            early.close()
        if graphs is not None:
            graphs.rest()
    completions = [done[row] for row in range(len(ids))]
    return Sampled(share, [c.token_ids for c in completions], [c.logprobs for c in completions], early)
