"""Completions files: JSONL with the rows {id, prompt, completion, finished, prompt_ids, completion_ids, reference, score}.

The stage `generate` writes them; evaluation, reward models and `preferences build` read them. `completion` is without
the end-of-text token; `completion_ids` has it when the model ended by itself (`finished`). `reference` is a completion
that a person wrote, or null. `score` is a judgement that somebody made of the completion, and may be absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.readers import Row, check_utf8, get_field, get_turns, messages_of, read_rows
from data.records import Turns, plain_text
from launch.errors import UserError
from launch.files import write_atomic


@dataclass(frozen=True)
class Completion:
    """One completion of one prompt. `origin` says where it was read."""

    id: str
    prompt: Turns
    text: str
    finished: bool
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    reference: str | None
    origin: str
    score: float | None = None

    @property
    def prompt_text(self) -> str:
        """The prompt as plain text: what groups the samples of one prompt."""
        return plain_text(self.prompt)

    def row(self) -> dict[str, Any]:
        """The JSON row of this completion."""
        row: dict[str, Any] = {
            "id": self.id,
            "prompt": self.prompt,
            "completion": self.text,
            "finished": self.finished,
            "prompt_ids": list(self.prompt_ids),
            "completion_ids": list(self.completion_ids),
            "reference": self.reference,
        }
        return row if self.score is None else {**row, "score": self.score}


def reference_text(reference: Any) -> str | None:
    """A reference answer as text, to compare with sampled text: of messages what they say, without their roles.

    It may be any value of a column of that name, such as the number that is the solution.
    """
    if reference is None or isinstance(reference, str):
        return reference
    if isinstance(reference, list) and all(isinstance(m, dict) and "content" in m for m in reference):
        return "\n".join(str(message["content"]) for message in reference)
    return str(reference)


# ---------------------------------------------------------------------------------------------- files


def completions_file(path: str | Path) -> Path:
    """The file itself, or the completions.jsonl of a folder."""
    path = Path(path)
    return path / "completions.jsonl" if path.is_dir() else path


def save_completions(rows: Iterable[Completion], path: str | Path) -> None:
    """Write a completions file, whole or not at all; `load_completions` gives the rows back."""
    lines = [json.dumps(row.row(), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_atomic(path, "".join(lines))


def load_completions(path: str | Path) -> list[Completion]:
    """The rows of a completions file, or of the folder that holds one. UserError names file, line and field."""
    file = completions_file(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file; run `alignkit generate` first")
    rows = [_completion(row) for row in read_rows(file)]
    seen: dict[str, str] = {}
    for row in rows:
        if row.id in seen:
            raise UserError(f"{row.origin}: id {row.id} was used before, at {seen[row.id]}; give each row its own id")
        seen[row.id] = row.origin
    return rows


def _completion(row: Row) -> Completion:
    return Completion(
        id=str(get_field(row, "id")),
        prompt=_prompt(row),
        text=check_utf8(_typed(row, "completion", (str,)), f"{row.where}: 'completion'"),
        finished=_typed(row, "finished", (bool,)),
        prompt_ids=_ids(row, "prompt_ids"),
        completion_ids=_ids(row, "completion_ids"),
        reference=_reference(row),
        origin=row.where,
        score=_score(row),
    )


def _prompt(row: Row) -> Turns:
    """Text, which may be blank, or messages."""
    value: Turns = _typed(row, "prompt", (str, list))
    where = f"{row.where}: 'prompt'"
    return check_utf8(value, where) if isinstance(value, str) else messages_of(value, where)


def _reference(row: Row) -> str | None:
    """The reference of a row; a blank one is none."""
    value = row.values.get("reference")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return reference_text(get_turns(row, "reference"))


def _score(row: Row) -> float | None:
    value = row.values.get("score")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{row.where}: 'score' is {value!r}, no finite number; give one, or leave the field out")
    return float(value)


def _typed(row: Row, name: str, kinds: tuple[type, ...]) -> Any:
    value = get_field(row, name)
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{row.where}: '{name}' is a {type(value).__name__}, not {expected}; write the file again")
    return value


def _ids(row: Row, name: str) -> tuple[int, ...]:
    values = _typed(row, name, (list,))
    if not all(isinstance(v, int) and v >= 0 for v in values):
        raise UserError(f"{row.where}: '{name}' holds something other than token ids; write the file again")
    return tuple(values)


def align(ours: Sequence[Completion], theirs: Sequence[Completion]) -> list[tuple[Completion, Completion]]:
    """Rows of two files that answer the same prompts, in pairs, in the order of `ours`.

    Samples of a prompt are paired in their order. UserError names the first prompt that the files do not share.
    """
    waiting: dict[str, list[Completion]] = {}
    for row in theirs:
        waiting.setdefault(row.prompt_text, []).append(row)
    pairs = []
    for row in ours:
        rows = waiting.get(row.prompt_text)
        if not rows:
            raise UserError(
                f"{row.origin}: the other file has no completion of this prompt; generate both from the same prompts "
                "with the same number of samples"
            )
        pairs.append((row, rows.pop(0)))
    if left := next((rows[0] for rows in waiting.values() if rows), None):
        raise UserError(f"{left.origin}: this prompt is missing in the other file; generate both from the same prompts")
    return pairs
