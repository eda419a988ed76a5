"""Duels of two answers to a prompt, and what judges make of them. Pure but for the protocol.

A judge may be swayed by which answer it is shown first. Such a judge is asked twice, with the answers in both orders, and
a duel that it decides one way and then the other is a tie, as in MT-bench (Zheng et al. 2023). A judge that always names
the first so has a win rate of one half and a consistency of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.records import Turns, plain_text
from evaluation.schema import Judge as JudgeRecord

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """What a judge reads of a completion: its text, and whether it ended by itself."""

    text: Turns
    finished: bool = True

    @property
    def content(self) -> list[Any]:
        """For hashes."""
        return [self.text, self.finished]


@dataclass(frozen=True)
class Duel:
    """Two answers to a prompt, in the order in which a judge is shown them."""

    prompt: Turns
    first: Answer
    second: Answer

    @property
    def swapped(self) -> Duel:
        """The same with the answers the other way round."""
        return Duel(self.prompt, self.second, self.first)

    @property
    def same(self) -> bool:
        """Whether both answers are the same: a tie, whoever judges."""
        return self.first == self.second

    @property
    def content(self) -> list[Any]:
        """What a verdict depends on, as JSON."""
        return [self.prompt, self.first.content, self.second.content]

    @property
    def size(self) -> int:
        """Characters that the judge reads."""
        return sum(len(plain_text(turns)) for turns in (self.prompt, self.first.text, self.second.text))


Verdict = dict[str, Any]
"""`vote`: 1 for the answer shown first, 0 for the second, 0.5 for neither, None when there is no verdict (`why` says
why not). And what else the judge gives: its `reply`, the `rewards` of both answers. A row of JSON."""


class Judge(Protocol):
    """Who decides duels."""

    name: str
    sees_order: bool
    """Whether the order of the answers may sway it, so that it must be asked in both."""
    budget: int
    """The summed `size` of duels that it is given at once: how often verdicts are written down."""

    def size(self, duel: Duel) -> int:
        """What a duel costs it, in a unit of its own."""

    def check(self, duels: Sequence[Duel]) -> None:
        """UserError that names the first duel, from 1, that it cannot read."""

    def settings(self) -> dict[str, Any]:
        """What its verdicts depend on besides the duel, as JSON: model, prompt, ... No secrets, no addresses."""

    def record(self) -> JudgeRecord:
        """What results say of it."""

    def judge(self, duels: Sequence[Duel]) -> list[Verdict]:
        """The verdicts on duels as they are shown."""


@dataclass(frozen=True)
class Verdicts:
    """Votes on N duels, NaN where there is no verdict. `second_N` is the vote in the other order, told of the same answer.

    So first_N = 1 and second_N = 1 both mean that the first answer of the duel won, whichever was shown first.
    """

    first_N: Array
    second_N: Array | None

    @property
    def outcomes_N(self) -> Array:
        """1, 0.5 or 0 for the first answer of each duel; inconsistent verdicts are ties; NaN without a (whole) verdict."""
        if self.second_N is None:
            return self.first_N
        tied = np.where(self.first_N == self.second_N, self.first_N, 0.5)
        return np.where(np.isnan(self.first_N) | np.isnan(self.second_N), np.nan, tied)

    @property
    def decided_N(self) -> NDArray[np.bool_]:
        """Where there is an outcome."""
        return ~np.isnan(self.outcomes_N)

    @property
    def consistent_N(self) -> Array | None:
        """1 where both orders gave the same verdict, of the duels with both; None for a judge that was asked once."""
        if self.second_N is None:
            return None
        return (self.first_N == self.second_N)[self.decided_N].astype(float)

    @property
    def first_shown_N(self) -> Array | None:
        """How far the answer shown first was preferred, of the duels with both verdicts: 1 twice, 0 never, 0.5 neither."""
        if self.second_N is None:
            return None
        return (self.first_N[self.decided_N] + 1 - self.second_N[self.decided_N]) / 2

    @property
    def missing(self) -> int:
        """Verdicts that are not there, over both orders."""
        asked = [self.first_N] if self.second_N is None else [self.first_N, self.second_N]
        return int(sum(np.isnan(votes).sum() for votes in asked))


def gather_verdicts(rows: Sequence[Verdict], swapped: Sequence[Verdict] | None) -> Verdicts:
    """Votes of the rows, those of the swapped duels turned back."""
    first = np.array([np.nan if r["vote"] is None else float(r["vote"]) for r in rows])
    if swapped is None:
        return Verdicts(first, None)
    return Verdicts(first, 1 - np.array([np.nan if r["vote"] is None else float(r["vote"]) for r in swapped]))
