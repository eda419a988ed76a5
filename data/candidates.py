"""Prompts with several answers, some right and some wrong: the form of RewardBench 2.

Rows have `prompt`, `chosen` and `rejected`, lists of answers (text, or one text alone), and may have `id` and `subset`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.readers import Row, check_utf8, get_field, get_turns
from data.records import Turns
from data.sources import load_rows
from launch.errors import UserError


@dataclass(frozen=True)
class Candidates:
    """A prompt, its right answers and its wrong ones."""

    id: str
    prompt: Turns
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    subset: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """The right ones first."""
        return self.right + self.wrong


def load_candidates(source: str | Path) -> list[Candidates]:
    """The prompts of a file, a folder or a `hub:` data set. UserError names the row that is faulty."""
    return [_candidates(row, number) for number, row in enumerate(load_rows(str(source)))]


def _candidates(row: Row, number: int) -> Candidates:
    right, wrong = (_answers(row, name) for name in ("chosen", "rejected"))
    if both := set(right) & set(wrong):
        raise UserError(f"{row.where}: {min(both)!r:.60} is both chosen and rejected; remove it on one side")
    identity = row.values.get("id")
    name = str(number) if identity is None else str(identity)
    subset = str(row.values.get("subset") or "")
    for field, text in (("id", name), ("subset", subset)):
        check_utf8(text, f"{row.where}: '{field}'")
    return Candidates(name, get_turns(row, "prompt"), right, wrong, subset)


def _answers(row: Row, name: str) -> tuple[str, ...]:
    values: Any = get_field(row, name)
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise UserError(f"{row.where}: '{name}' is no list of answers; give one text or more, none of them empty")
    return tuple(check_utf8(value, f"{row.where}: '{name}'") for value in values)
