"""What every reward source takes and gives: `source.score(episodes) -> Scores`.

Shapes: B episodes, T_i tokens of completion i.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.records import Turns
from launch.errors import UserError

Ids = Sequence[int]


@dataclass(frozen=True)
class Episodes:
    """What is scored: one prompt and one completion in each of B rows."""

    prompts: Sequence[Turns]
    """Text or messages, as the data set has them."""
    completions: Sequence[str]
    prompt_ids: Sequence[Ids]
    """Token ids of the policy's tokenizer."""
    completion_ids: Sequence[Ids]
    """Token ids as the policy sampled them, with the EOS where it came to one."""
    finished: Sequence[bool]
    """Whether a completion ended with EOS; the others were cut off."""
    rows: Sequence[Mapping[str, Any]]
    """The other columns of each prompt's data row, such as a reference answer."""

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in self.__dataclass_fields__}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"Episodes: the columns have different lengths: {sizes}")

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def decode(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Mapping[str, Any]],
        completion_ids: Sequence[Ids],
    ) -> Episodes:
        """Episodes of sampled token ids. `rows` hold `prompt` and `prompt_ids`, as `alignment.prompts` gives them."""
        own = ("prompt", "prompt_ids")
        return cls(
            prompts=[row["prompt"] for row in rows],
            completions=[str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in completion_ids],
            prompt_ids=[row["prompt_ids"] for row in rows],
            completion_ids=completion_ids,
            finished=[bool(ids) and ids[-1] == tokenizer.eos_token_id for ids in completion_ids],
            rows=[{key: value for key, value in row.items() if key not in own} for row in rows],
        )

    def columns(self) -> dict[str, list[Any]]:
        """The columns of `rows`, each with B values; None where a row lacks one."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}


@dataclass
class Scores:
    """What a source gives for B episodes. All tensors are float32 on the CPU."""

    total_B: Tensor
    """The whole reward of each episode, the sum of its token rewards included."""
    components: dict[str, Tensor]
    """(B,) of each source by its name, before its weight."""
    token_rewards: list[Tensor] | None = None
    """(T_i,) of each episode, after weights: the part of `total_B` that belongs to single tokens."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """(B,) to log besides, named `SOURCE/WHAT`."""
    rest_B: Tensor | None = None
    """The part of `total_B` that no single token was given; taken from the others when None, up to their rounding."""

    @property
    def last_token_B(self) -> Tensor:
        """The part of `total_B` that belongs to the last token of each completion: what no single token was given."""
        if self.rest_B is not None:
            return self.rest_B
        return self.total_B if self.token_rewards is None else self.total_B - sum_tokens(self.token_rewards)

    def columns(self) -> dict[str, Tensor]:
        """(B,) of everything to log, components and extras: their means are the metrics `reward/NAME`."""
        return {**self.components, **self.extras}


class RewardSource(Protocol):
    """Anything that scores episodes. `name` is what its component is called.

    A source with a true attribute `row_by_row` promises that no row's reward depends on the others that it is given: it
    may be asked for some of them early (`overlap_scoring`).
    """

    name: str

    def score(self, episodes: Episodes) -> Scores:
        """Scores of the episodes. UserError names the source, how many rows are wrong and the first of them."""
        ...


def sum_tokens(token_rewards: Sequence[Tensor]) -> Tensor:
    """The sums (B,) of token rewards, made in float64."""
    sums = [rewards.sum(dtype=torch.float64) for rewards in token_rewards]
    return torch.stack(sums).float() if sums else torch.zeros(0)


def single(name: str, rewards_B: Tensor, **extras: Tensor) -> Scores:
    """The scores of one source with sequence rewards; extras get the source's name before theirs."""
    return Scores(rewards_B, {name: rewards_B}, extras={f"{name}/{key}": value for key, value in extras.items()})


# ---------------------------------------------------------------------------------------------- checking


def check_rewards(values: Any, n: int, source: str, first: int = 0, of: str = "episodes") -> Tensor:
    """`values` as float32 (n,): one finite number for each row, as a list, an array or a tensor.

    UserError when there is nothing, another number of values, or a value that is no finite number; it begins with
    `source`, counts the bad rows and names the first one, counted from 1 after `first` rows that came before.
    """
    rows = list_of(values, n, source, of)
    numbers = [_number(value) for value in rows]
    bad = [i for i, number in enumerate(numbers) if number is None or not math.isfinite(number)]
    if bad:
        raise UserError(
            f"{source}: row {first + bad[0] + 1} of the {of} has {_show(rows[bad[0]])} for a reward ({len(bad)} of {n} "
            "rows are bad); give one finite number for each"
        )
    return torch.tensor(numbers, dtype=torch.float64).float()


def list_of(values: Any, n: int, source: str, of: str = "episodes") -> list[Any]:
    """`values` as a list of n, or a UserError that says what came instead."""
    if values is None:
        raise UserError(f"{source}: returned nothing for {n} {of}; return a list with one number for each")
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise UserError(
            f"{source}: returned {_show(values)} for {n} {of}, which is no list; return a list with one number for each"
        )
    if len(values) != n:
        raise UserError(
            f"{source}: returned {len(values)} values for {n} {of}; return one number for each, in their order"
        )
    return list(values)


def _number(value: Any) -> float | None:
    """A number as float32 holds it (what is too large becomes infinity); None for anything else."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        return None
    try:
        return float(torch.tensor(float(value), dtype=torch.float64).float())
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
