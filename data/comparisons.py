"""Recorded comparisons of models: JSONL (or any table) of who met whom, and who won.

Fields: `model_a`, `model_b`, `winner` ("model_a", "model_b", the winner's name, or else anything that begins with "tie"),
as Chatbot Arena publishes them; `prompt` or `question_id`, when given, says which comparisons were made on the same prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.readers import Row, check_utf8, get_field, list_files, read_rows
from launch.errors import UserError

WORDS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5}
PROMPT_FIELDS = ("prompt", "question_id", "prompt_id")


@dataclass(frozen=True)
class Comparison:
    """One comparison: 1 where `first` won, 0 where `second` did, 0.5 for a tie."""

    first: str
    second: str
    outcome: float
    prompt: str = ""


def load_comparisons(source: str | Path) -> list[Comparison]:
    """The comparisons of a file or folder. UserError names the row that is faulty."""
    return [_comparison(row) for file in list_files(Path(source)) for row in read_rows(file)]


def _comparison(row: Row) -> Comparison:
    first, second = (check_utf8(str(get_field(row, name)), f"{row.where}: '{name}'") for name in ("model_a", "model_b"))
    winner = str(get_field(row, "winner"))
    if first == second:
        raise UserError(f"{row.where}: {first} meets itself; remove the row")
    outcome = _outcome(row, first, second, winner)
    prompt = next((str(row.values[name]) for name in PROMPT_FIELDS if row.values.get(name) is not None), "")
    return Comparison(first, second, outcome, check_utf8(prompt, f"{row.where}: the prompt"))


def _outcome(row: Row, first: str, second: str, winner: str) -> float:
    """1, 0 or 0.5. A model's name comes before the word tie, which may begin it; UserError where it can mean two things."""
    word = winner.lower() if winner.lower() == "tie" else winner
    meanings = {WORDS.get(word), {first: 1.0, second: 0.0}.get(winner)} - {None}
    if len(meanings) > 1:
        raise UserError(
            f"{row.where}: winner {winner!r} is the name of a model and a word of this format; rename the model"
        )
    if not meanings and not winner.lower().startswith("tie"):
        raise UserError(f"{row.where}: winner is {winner!r}; give model_a, model_b or tie")
    return next((m for m in meanings if m is not None), 0.5)
