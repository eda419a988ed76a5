"""Completions files: JSONL with {id, prompt, completion, prompt_ids, completion_ids, finished, reference}.

The stage `generate` writes them. `completion` is without the end-of-text token; `completion_ids` has it when the
model ended by itself (`finished`). `reference` is a human-written completion, or absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.readers import Row, get_field, read_rows
from data.records import Turns, plain_text
from launch.errors import UserError


@dataclass(frozen=True)
class Completion:
    """One completion of one prompt."""

    id: str
    prompt: Turns
    text: str
    finished: bool
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    reference: str | None
    origin: str

    @property
    def prompt_text(self) -> str:
        """The prompt as plain text: what groups the samples of one prompt."""
        return plain_text(self.prompt)


def completions_file(path: str | Path) -> Path:
    """The file itself, or the completions.jsonl of a folder."""
    path = Path(path)
    return path / "completions.jsonl" if path.is_dir() else path


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
    reference = row.values.get("reference")
    return Completion(
        id=str(get_field(row, "id")),
        prompt=_typed(row, "prompt", (str, list)),
        text=_typed(row, "completion", (str,)),
        finished=_typed(row, "finished", (bool,)),
        prompt_ids=_ids(row, "prompt_ids"),
        completion_ids=_ids(row, "completion_ids"),
        reference=None if reference is None else plain_text(reference),
        origin=row.where,
    )


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
