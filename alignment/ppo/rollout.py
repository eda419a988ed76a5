"""A rollout: the episodes of one update, whole on every rank.

Each rank samples and scores its own episodes; then the tensors are gathered, so that whitening, advantages and
minibatches are those of the GLOBAL batch on any number of ranks. They are small beside one micro-batch of logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from launch.runtime import Runtime


@dataclass
class Rollout:
    """B episodes: rows of S = P + T tokens, a left-padded prompt and a right-padded response."""

    tokens_BS: Tensor
    mask_BS: Tensor
    """1 on real tokens."""
    response_mask_BT: Tensor
    """1 on response tokens, EOS included."""
    finished_B: Tensor
    """1 where the response ended with EOS."""
    logprobs_BT: Tensor | None = None
    ref_logprobs_BT: Tensor | None = None
    values_BT: Tensor | None = None
    scores_B: Tensor | None = None
    """The reward source's score, before the missing-EOS rule."""
    rewards_BT: Tensor | None = None
    advantages_BT: Tensor | None = None
    returns_BT: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """T."""
        return self.response_mask_BT.shape[1]

    def __len__(self) -> int:
        return self.tokens_BS.shape[0]

    def rows(self, index: Tensor | slice) -> Rollout:
        """The episodes at `index`."""
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> Rollout:
        return self._map(lambda tensor: tensor.to(device))

    def gather(self, runtime: Runtime) -> Rollout:
        """The episodes of all ranks, in rank order, on every rank. Shapes must be equal (see `make_rollout`)."""
        return self._map(lambda tensor: runtime.accelerator.gather(tensor.contiguous())) if runtime.world > 1 else self

    def _map(self, change: Callable[[Tensor], Tensor]) -> Rollout:
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Rollout(
            **{name: change(value) if isinstance(value, Tensor) else value for name, value in tensors.items()}
        )


def make_rollout(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int, eos_id: int, runtime: Runtime
) -> Rollout:
    """Lay out prompts and responses (token ids) in tensors whose shape is the same on every rank."""
    longest = runtime.gather_objects((max(map(len, prompts)), max(map(len, responses))))
    width, length = max(p for p, _ in longest), max(t for _, t in longest)
    tokens_BS = torch.full((len(prompts), width + length), pad_id)
    mask_BS = torch.zeros_like(tokens_BS)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, end = width - len(prompt), width + len(response)
        tokens_BS[row, start:end] = torch.tensor([*prompt, *response])
        mask_BS[row, start:end] = 1
    finished_B = torch.tensor([int(bool(r) and r[-1] == eos_id) for r in responses])
    response_mask_BT = mask_BS[:, width:].float()
    return Rollout(tokens_BS, mask_BS, response_mask_BT, finished_B).to(runtime.device)


def minibatch_parts(order: Sequence[int], runtime: Runtime, micro_batch: int) -> list[list[int]]:
    """This rank's micro-batches of a global minibatch (row numbers); as many on every rank, the last ones may be empty.

    Under ZeRO all ranks must make the same number of passes: a rank that runs out gets an empty list, and passes a
    row with an empty mask. No row is dropped and none counts twice.
    """
    largest = -(-len(order) // runtime.world)
    mine = list(order[runtime.rank :: runtime.world])
    return [mine[start : start + micro_batch] for start in range(0, largest, micro_batch)]
