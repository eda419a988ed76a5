"""A rollout: the episodes of one update, whole on every rank.

Each rank samples its own episodes and asks for their rewards; all are gathered, so that whitening, advantages and minibatches
are those of the GLOBAL batch on any number of ranks. They are small beside one micro-batch of activations.

Token ids are ragged lists; per-token numbers are (B, T) tensors, T the longest response of the global batch, 0 after
a response's end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignment.ppo.background import raise_everywhere
from alignment.reward.sources.protocol import check_rewards
from evaluation.batches import cut_rows
from launch.errors import UserError
from launch.runtime import Runtime

Prompt = dict[str, Any]
"""A row of the prompts: `prompt_ids` and whatever else its source says of it (`prompt`, `reference`, ...)."""


TOKEN_SCORES = "token_scores_BT"
OF_SOURCE = ("scores_B", TOKEN_SCORES)
"""What each rank is given for its own episodes; rewards of tokens perhaps on some ranks alone."""


@dataclass
class Rollout:
    """B episodes: a prompt and a response each."""

    prompts: list[Prompt]
    responses: list[list[int]]
    """Token ids, with the EOS that ended them."""
    groups: list[int]
    """Episodes of one group answered the same prompt."""
    mask_BT: Tensor
    """1 on response tokens, EOS included."""
    finished_B: Tensor
    """1 where the response ended with EOS."""
    engine_logprobs_BT: Tensor | None = None
    """Of the weights or the engine that sampled them, when that is not the policy itself."""
    logprobs_BT: Tensor | None = None
    """The old ones of the ratio; the update sets them where nothing needs them before (PPOConfig.first_pass_is_old)."""
    left_at: int | None = None
    """How often the policy had moved when they were left to the update: they are those of that policy."""
    ref_logprobs_BT: Tensor | None = None
    values_BT: Tensor | None = None
    scores_B: Tensor | None = None
    """The reward source's score of the whole response, before the missing-EOS rule; `token_scores_BT` come on top."""
    token_scores_BT: Tensor | None = None
    """Rewards that the source gives to single tokens."""
    components: dict[str, Tensor] = field(default_factory=dict)
    """Parts of the score by name, (B,) each."""
    rewards_BT: Tensor | None = None
    advantages_BT: Tensor | None = None
    importance_BT: Tensor | None = None
    """Truncated importance weights, when the responses were sampled by other weights or another engine."""
    returns_BT: Tensor | None = None
    counted: tuple[dict[str, float], dict[str, float]] | None = None
    """State of the normaliser of scores before and after it took in this rollout's."""
    gathered: bool = False
    """Whether it was put together from the episodes of several ranks."""
    early: Future[Any] | None = None
    """Rewards that were asked for while it was being sampled (scoring.EarlyScores)."""
    logged: dict[str, float] = field(default_factory=dict)
    """What the phases found out about it, by the name of the metric."""
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def prompt_ids(self) -> list[list[int]]:
        """Token ids of each episode's prompt."""
        return [prompt["prompt_ids"] for prompt in self.prompts]

    @property
    def sequences(self) -> list[list[int]]:
        """Prompt and response of each episode."""
        return [[*prompt, *response] for prompt, response in zip(self.prompt_ids, self.responses, strict=True)]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each episode, prompt and response."""
        return [len(p) + len(r) for p, r in zip(self.prompt_ids, self.responses, strict=True)]

    @property
    def total_scores_B(self) -> Tensor:
        """The whole of the source's reward for each episode, single tokens included."""
        assert self.scores_B is not None
        if self.token_scores_BT is None:
            return self.scores_B
        total_B = self.scores_B + self.token_scores_BT.sum(1, dtype=torch.float64)
        return total_B.to(self.scores_B.dtype)

    def flat(self, values_BT: Tensor, rows: Sequence[int]) -> Tensor:
        """The numbers of the response tokens of some episodes, one after the other: (N,)."""
        index = torch.as_tensor(rows, device=values_BT.device)
        return values_BT[index][self.mask_BT[index].bool()]

    def spread(self, values_N: Tensor, rows: Sequence[int]) -> Tensor:
        """The inverse of `flat`: (len(rows), T), 0 after a response's end."""
        mask_BT = self.mask_BT[torch.as_tensor(rows, device=self.mask_BT.device)]
        return torch.zeros_like(mask_BT).masked_scatter(mask_BT.bool(), values_N.to(mask_BT.dtype))

    def gather(self, runtime: Runtime) -> Rollout:
        """The episodes of all ranks, in rank order, on every rank, without their scores: those come by `take_scores`."""
        if runtime.world == 1 or self.gathered:
            return self
        own = (self.prompts, self.responses, self.groups)
        prompts, responses, groups = (
            [item for part in parts for item in part] for parts in zip(*runtime.gather_objects(own), strict=True)
        )
        own_BT = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        all_BT = {
            name: runtime.gather(value)
            for name, value in own_BT.items()
            if isinstance(value, Tensor) and name not in OF_SOURCE
        }
        changed: dict[str, Any] = {**dict.fromkeys(OF_SOURCE), **all_BT, "components": {}, "early": None}
        return dataclasses.replace(self, prompts=prompts, responses=responses, groups=groups, gathered=True, **changed)

    def take_scores(self, own: Rollout, runtime: Runtime) -> None:
        """Set what sources gave to all episodes from what each rank was given for its `own` ones.

        Ranks may have been given other things by their sources: of the components those stay that all have, and where
        only some have token rewards those of the others are 0.
        """
        if self is own:
            return
        assert own.scores_B is not None
        given = (list(own.components), own.token_scores_BT is not None)
        names, tokens = zip(*runtime.gather_objects(given), strict=True)
        common = [name for name in names[0] if all(name in others for others in names)]
        self.scores_B = runtime.gather(own.scores_B)
        self.components = {name: runtime.gather(own.components[name]) for name in common}
        if any(tokens):
            mine_BT = torch.zeros_like(own.mask_BT) if own.token_scores_BT is None else own.token_scores_BT
            self.token_scores_BT = runtime.gather(mine_BT)


def make_rollout(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[int]],
    groups: Sequence[int],
    eos_id: int,
    runtime: Runtime,
    engine_logprobs: Sequence[Sequence[float]] | None = None,
) -> Rollout:
    """Episodes of this rank, with tensors whose T is that of the longest response on any rank.

    UserError, on all ranks, when one has no response or an empty one: its score would have no token to stand on.
    """
    outline = outline_of(responses, eos_id, runtime)
    rollout = Rollout(list(prompts), [list(r) for r in responses], list(groups), *outline)
    if engine_logprobs is not None:
        flat_N = torch.tensor([value for row in engine_logprobs for value in row], device=runtime.device)
        rollout.engine_logprobs_BT = rollout.spread(flat_N, range(len(rollout)))
    return rollout


def outline_of(responses: Sequence[Sequence[int]], eos_id: int, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """`mask_BT` and `finished_B` of this rank's responses; as `make_rollout` says."""
    lengths = runtime.gather_objects([len(response) for response in responses])
    for rank, mine in enumerate(lengths):
        if not mine:
            raise UserError(f"rollout: there is no response on rank {rank}; give each process at least one")
        if 0 in mine:
            raise UserError(
                f"rollout: response {mine.index(0) + 1} is empty; give it at least its EOS, or leave the episode out"
            )
    mask_BT = torch.zeros(len(responses), max(map(max, lengths)))
    for row, response in enumerate(responses):
        mask_BT[row, : len(response)] = 1
    finished_B = torch.tensor([float(r[-1] == eos_id) for r in responses])
    return mask_BT.to(runtime.device), finished_B.to(runtime.device)


def follow_changes(rollout: Rollout, eos_id: int, runtime: Runtime) -> None:
    """Before it is scored: what follows from responses and scores that the user may have changed. UserError, on all ranks, where it cannot."""
    fault: UserError | None = None
    fields = {
        name: value for name, value in vars(rollout).items() if name.endswith(("_B", "_BT")) and name != TOKEN_SCORES
    }
    given = {name: True for name, value in fields.items() if value is not None}
    mask_BT, finished_B = outline_of(rollout.responses, eos_id, runtime)
    try:
        _check_alike(runtime.gather_objects({"episodes": len(rollout), **given}))
        if not torch.equal(mask_BT, rollout.mask_BT):
            _check_lengths(rollout)
        check_scores(rollout, "score")
    except UserError as error:
        fault = error
    if any(runtime.gather_objects(fault is not None)):
        raise_everywhere(fault, runtime)
    rollout.mask_BT, rollout.finished_B = mask_BT, finished_B


def _check_alike(of_ranks: list[dict[str, int]]) -> None:
    """What is there decides which collective calls a rank makes."""
    counts = [found["episodes"] for found in of_ranks]
    if len(set(counts)) > 1:
        raise UserError(
            f"score: processes have other numbers of episodes: {', '.join(map(str, counts))}; give each as many"
        )
    for name in sorted({name for found in of_ranks for name in found}):
        if not all(name in found for found in of_ranks):
            raise UserError(
                f"score: some processes have {name} and others have none; set it on all of them, or on none"
            )


def _check_lengths(rollout: Rollout) -> None:
    """Of a rollout whose responses have other lengths than before: what was given to their tokens is of no use."""
    if rollout.engine_logprobs_BT is not None:
        raise UserError(
            "score: responses have other lengths than when they were sampled, and what sampled them gave log-probabilities of "
            "their tokens; leave the lengths, or set the rollout's engine_logprobs_BT to None on all processes"
        )
    if rollout.token_scores_BT is not None:
        raise UserError(
            "score: responses have other lengths than when their tokens were given rewards; leave the lengths, or set the rollout's "
            "token_scores_BT to None and its scores_B anew"
        )


def check_scored(rollout: Rollout, phase: str) -> None:
    """UserError where responses, or the scores, of a rollout are no longer those that its numbers are of."""
    lengths = rollout.mask_BT.sum(1).long().tolist()
    if [len(response) for response in rollout.responses] != lengths:
        raise UserError(
            f"{phase}: responses have other lengths than when they were scored; change them before score, or set ref_logprobs_BT to None and "
            "score again"
        )
    check_scores(rollout, phase)


def check_scores(rollout: Rollout, phase: str) -> None:
    """Make `scores_B`, which the user may have set, a float32 tensor (B,) of finite numbers, or UserError."""
    if rollout.scores_B is not None:
        scores_B = check_rewards(rollout.scores_B, len(rollout), f"{phase}: the rollout's scores_B")
        rollout.scores_B = scores_B.to(rollout.mask_BT.device)


# ---------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """Episodes as a forward pass reads them: right-padded, so that a causal model needs no mask.

    b episodes of S tokens; N response tokens in all, one episode after the other.
    """

    tokens_bS: Tensor
    before_N: Tensor
    """Where, in the flattened (b * S) positions, the token before each response token stands; ascending."""
    targets_N: Tensor
    """The response tokens."""


def make_batch(rollout: Rollout, rows: Sequence[int], pad_id: int) -> Batch:
    """The forward pass's view of some episodes."""
    prompts, responses = rollout.prompt_ids, rollout.responses
    width = max(len(prompts[row]) + len(responses[row]) for row in rows)
    tokens_bS = torch.full((len(rows), width), pad_id)
    before: list[int] = []
    targets: list[int] = []
    for line, row in enumerate(rows):
        prompt, response = prompts[row], responses[row]
        tokens_bS[line, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
        first = line * width + len(prompt) - 1
        before.extend(range(first, first + len(response)))
        targets.extend(response)
    device = rollout.mask_BT.device
    return Batch(tokens_bS.to(device), torch.tensor(before, device=device), torch.tensor(targets, device=device))


def plan_parts(rows: Sequence[int], lengths: Sequence[int], budget: int, world: int) -> list[list[list[int]]]:
    """For each rank its micro-batches (lists of `rows`), as many for every rank; the last ones may be empty.

    Rows are sorted by length and dealt out to and fro, so that ranks have like work; a micro-batch holds at most
    `budget` padded tokens (or one row). Under ZeRO all ranks must make the same number of passes: a rank that runs
    out gets an empty list. No row is dropped and none counts twice.
    """
    ordered = sorted(rows, key=lambda row: (-lengths[row], row))
    hands: list[list[int]] = [[] for _ in range(world)]
    for number, row in enumerate(ordered):
        turn, seat = divmod(number, world)
        hands[seat if turn % 2 == 0 else world - 1 - seat].append(row)
    plans = [cut_rows(hand, lengths, budget) for hand in hands]
    most = max(map(len, plans))
    return [plan + [[] for _ in range(most - len(plan))] for plan in plans]
