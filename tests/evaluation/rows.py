"""Completions for tests."""

import itertools
import json
from pathlib import Path

from data.completions import Completion

_numbers = itertools.count()


def completion(prompt="p", text="t", tokens=3, finished=True, reference=None) -> Completion:
    number = next(_numbers)
    ids = (*range(tokens - 1), 257) if finished else tuple(range(tokens))
    return Completion(str(number), prompt, text, finished, (1, 2), ids, reference, f"row {number}")


def write_completions(path: Path, rows: list[dict]) -> Path:
    """A completions file; rows need `prompt` and `completion`, the rest is filled in with byte tokens."""
    from tests.evaluation import tiny

    encode = lambda text: tiny.tokenizer()(text)["input_ids"]  # noqa: E731
    with open(path, "w") as stream:
        for number, row in enumerate(rows):
            finished = row.get("finished", True)
            full = {
                "id": number,
                "finished": finished,
                "prompt_ids": encode(row["prompt"]),
                "completion_ids": encode(row["completion"]) + ([257] if finished else []),
            } | row
            stream.write(json.dumps(full) + "\n")
    return path
