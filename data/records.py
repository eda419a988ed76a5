"""The records that the loaders return, and the text normalisation that splits and duplicate checks share."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
Turns = str | list[Message]
"""A prompt or a completion: plain text, or chat messages `{"role": ..., "content": ...}`."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Document:
    """One text for pretraining or perplexity. `origin` says where it was read (`file: row 3`)."""

    text: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and the completion to imitate, both as text or both as messages."""

    prompt: Turns
    completion: Turns
    origin: str = ""

    def row(self) -> dict[str, Any]:
        """The row TRL's SFT trainer reads (prompt-completion format)."""
        return {"prompt": self.prompt, "completion": self.completion}


def plain_text(turns: Turns) -> str:
    """The text of a prompt or completion; messages as `role: content` lines."""
    if isinstance(turns, str):
        return turns
    return "\n".join(f"{message['role']}: {message['content']}" for message in turns)


def normalise(text: str) -> str:
    """NFKC, case-folded, runs of white space as one space: equal for texts that a reader would call the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """The words of the normalised text, punctuation left out."""
    return _WORD.findall(normalise(text))


@dataclass(frozen=True, slots=True)
class Preference:
    """One judgement: for `prompt`, `chosen` is better than `rejected` (or as good, if `tie`).

    The first three fields are TRL's explicit-prompt preference format, as text or as messages. `strength` is how much
    better, 0 or more on the scale of its source (TRL's reward trainer reads it as `margin`), None if unknown.
    """

    prompt: Turns
    chosen: Turns
    rejected: Turns
    source: str = ""
    criteria: str = "overall"
    annotator: str = ""
    strength: float | None = None
    tie: bool = False
    origin: str = field(default="", compare=False)

    def row(self) -> dict[str, Any]:
        """The JSON row of this preference; `origin`, where it was read, is left out."""
        return {name: getattr(self, name) for name in PREFERENCE_FIELDS}


PREFERENCE_FIELDS = ("prompt", "chosen", "rejected", "source", "criteria", "annotator", "strength", "tie")
