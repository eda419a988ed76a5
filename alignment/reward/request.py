"""What a reward service is asked: OpenRLHF's `remote_rm_url` JSON, and what alignkit's own client adds to it.

Pure: bytes in, texts out. Three forms of request, the first that fits is taken:
1. `completions` with `messages` or `prompts`: scored as `RewardModel.score(prompts, completions, ended=finished)`;
2. `query` and `prompts`: the query is split behind its prompt, which gives the first form;
3. `query` alone: scored as one text, with an EOS behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.records import Turns


class BadRequest(ValueError):
    """A request that cannot be served as it is: one sentence, for an answer with status 400."""


@dataclass(frozen=True)
class Request:
    """The rows to score."""

    prompts: list[Turns]
    completions: list[str]
    finished: list[bool]


def read_request(content: bytes, most_rows: int, ends: Sequence[str] = (), starts: Sequence[str] = ()) -> Request:
    """The rows of a request. BadRequest says what is wrong with it.

    `ends`: texts of EOS and pad tokens, which engines leave at the end of a query; they are cut off. `starts`: those of
    BOS (where the tokenizer adds its own) and pad tokens, which they leave at its beginning.
    """
    try:
        asked = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request is not JSON ({type(error).__name__}); send an object with 'query'") from None
    if not isinstance(asked, dict):
        raise BadRequest("the request is no JSON object; send one with 'query', a list of texts")
    counted = "completions" if asked.get("completions") is not None else "query"
    texts = _texts(asked, counted, None)
    if texts is None:
        raise BadRequest("'query' is missing; send a list of texts, each a prompt with its completion")
    if len(texts) > most_rows:
        raise BadRequest(f"{len(texts)} rows in one request, more than {most_rows}; send smaller batches")
    prompts = _texts(asked, "prompts", len(texts))
    finished = _column(asked, "finished", len(texts), bool, "true or false") or [True] * len(texts)
    if counted == "completions":
        return Request(_with_messages(asked, prompts, len(texts)), texts, finished)
    rows = zip(texts, prompts or [""] * len(texts), strict=True)
    pairs = [_split(text, prompt, starts, ends) for text, prompt in rows]
    return Request([prompt for prompt, _ in pairs], [completion for _, completion in pairs], finished)


def _split(query: str, prompt: str, starts: Sequence[str], ends: Sequence[str]) -> tuple[str, str]:
    """(prompt, completion) of a query. Without its prompt at its beginning it is read as one text: (all of it, nothing)."""
    while mark := next((mark for mark in ends if mark and query.endswith(mark)), None):
        query = query[: -len(mark)]
    while not (prompt and query.startswith(prompt)):
        mark = next((mark for mark in starts if mark and query.startswith(mark)), None)
        if mark is None:
            return query, ""
        query = query[len(mark) :]
    return prompt, query[len(prompt) :]


def _with_messages(asked: dict[str, Any], prompts: list[str] | None, n: int) -> list[Turns]:
    """The prompts: messages where a row has them, text elsewhere."""
    rows = asked.get("messages")
    if rows is None:
        if prompts is None:
            raise BadRequest("'prompts' is missing beside 'completions'; send both, or 'query'")
        return list(prompts)
    if not isinstance(rows, list) or len(rows) != n:
        raise BadRequest(f"'messages' is no list of {n} rows; send one for each completion, or null")
    for number, row in enumerate(rows, 1):
        if not (_is_messages(row) or (row is None and prompts is not None)):
            raise BadRequest(f"'messages': row {number} is no list of {{role, content}} texts")
    return [row if row is not None else (prompts or [])[i] for i, row in enumerate(rows)]


def _is_messages(row: Any) -> bool:
    return isinstance(row, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in row
    )


def _texts(asked: dict[str, Any], name: str, n: int | None) -> list[str] | None:
    return _column(asked, name, n, str, "text")


def _column(asked: dict[str, Any], name: str, n: int | None, kind: type, kind_name: str) -> list[Any] | None:
    """A column of the request, of n values where n is given; None when it is absent."""
    values = asked.get(name)
    if values is None:
        return None
    if not isinstance(values, list):
        raise BadRequest(f"'{name}' is no list; send one value for each row")
    if n is not None and len(values) != n:
        raise BadRequest(f"'{name}' has {len(values)} values for {n} rows; send one for each")
    for number, value in enumerate(values, 1):
        if not isinstance(value, kind):
            raise BadRequest(f"'{name}': row {number} is not {kind_name}")
    return values
