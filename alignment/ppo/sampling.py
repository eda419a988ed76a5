"""Drawing the responses of a rollout on one rank. Nothing here makes a collective call: it may run in a thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alignment.generation import Sampling, generate
from alignment.ppo.config import PPOConfig
from alignment.ppo.models import response_logprobs
from alignment.ppo.rollout import Prompt, Rollout, make_batch, plan_parts
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
    """Responses to a share of a rollout, as token ids with the EOS that ended them."""

    responses: list[list[int]]
    logprobs: list[list[float]] | None = None
    """Of each token under the weights that sampled it, when those are not the policy's."""
    early: EarlyScores | None = None
    """The rewards that are being asked for already."""


def draw(
    policy: Any, share: Share, sampling: Sampling, config: PPOConfig, update: int, early: EarlyScores | None = None
) -> Sampled:
    """Sample the responses of update number `update`. With `early` each batch is handed on as soon as it is there.

    The batches are those that `generate` makes of the whole share.
    """
    lengths = [len(prompt["prompt_ids"]) for prompt in share.prompts]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    size = config.forward_batch_size if early is not None else len(order)
    responses: list[list[int]] = [[] for _ in order]
    try:
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            prompts, numbers = [share.prompts[row] for row in rows], [share.numbers[row] for row in rows]
            ids = [prompt["prompt_ids"] for prompt in prompts]
            drawn = generate(
                policy, ids, sampling, config.seed, "ppo-rollout", update, numbers, config.forward_batch_size
            )
            for row, response in zip(rows, drawn, strict=True):
                responses[row] = response
            if early is not None:
                early.add(rows, prompts, drawn)
    finally:
        if early is not None:
            early.close()
    return Sampled(responses, early=early)


def own_logprobs(
    policy: Any, share: Share, responses: list[list[int]], temperature: float, room: int, pad_id: int
) -> list[list[float]]:
    """Log-probability of each token of the responses under `policy`, nats. `room`: padded tokens of a forward pass.

    From the forward pass that training makes, not from generation: where the weights are the policy's, so are the
    log-probabilities, and the importance weights are 1.
    """
    device = next(policy.parameters()).device
    mask_BT = torch.zeros(len(responses), 1, device=device)
    episodes = Rollout(share.prompts, responses, share.numbers, mask_BT, mask_BT[:, 0])
    found: list[list[float]] = [[] for _ in responses]
    for part in plan_parts(range(len(responses)), episodes.lengths, room, 1)[0]:
        batch = make_batch(episodes, part, pad_id)
        logprobs_N, _ = response_logprobs(policy, batch.tokens_bS, batch.before_N, batch.targets_N, temperature)
        for row, values in zip(part, logprobs_N.split([len(responses[row]) for row in part]), strict=True):
            found[row] = values.tolist()
    return found
