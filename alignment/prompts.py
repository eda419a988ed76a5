"""Prompts as token ids, with what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from data import load_pairs, load_prompts
from launch.errors import UserError
from launch.files import sha256_text

Prompt = str | list[dict[str, Any]]


def load_prompt_rows(source: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows {prompt, reference} of a source of pairs, or of prompts alone (reference None).

    With `limit`, the first by content hash: a fixed sample that does not depend on the order of the source.
    """
    try:
        rows = [{"prompt": pair.prompt, "reference": pair.completion} for pair in load_pairs(source)]
    except UserError:
        rows = [{"prompt": prompt, "reference": None} for prompt in load_prompts(source)]
    if limit is not None:
        rows = sorted(rows, key=lambda row: sha256_text(str(row["prompt"])))[:limit]
    return rows


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: plain text, or messages through the tokenizer's chat template up to the assistant's turn."""
    if isinstance(prompt, str):
        return tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)


def fitting_prompts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_tokens: int
) -> tuple[list[dict[str, Any]], int]:
    """The rows whose prompt fits, with `prompt_ids`, and how many do not: a prompt is never cut, its cue would be lost.

    UserError when none fits.
    """
    ids = [render_prompt(tokenizer, row["prompt"]) for row in rows]
    fitting = [{**row, "prompt_ids": i} for row, i in zip(rows, ids, strict=True) if 0 < len(i) <= max_tokens]
    if not fitting:
        shortest = min(map(len, ids), default=0)
        raise UserError(
            f"prompts: none of {len(ids)} has between 1 and {max_tokens} tokens (shortest: {shortest}); raise max_prompt_tokens"
        )
    return fitting, len(rows) - len(fitting)
