"""Prompts as token ids, with what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from data import load_prompts_with_columns
from data.encoding import encode_prompts
from data.named_splits import parse_source
from data.readers import kind, list_files
from data.sources import load_rows
from launch.errors import UserError
from launch.files import sha256_text


def load_prompt_rows(source: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows {prompt, reference, ...} of a source, with all its other columns: see `load_prompts_with_columns`.

    With `limit`, the first by content hash: a fixed sample that does not depend on the order of the source.
    """
    rows = load_prompts_with_columns(source)
    if limit is not None:
        rows = sorted(rows, key=lambda row: sha256_text(str(row["prompt"])))[:limit]
    return rows


def holds_pairs(source: str) -> bool:
    """Whether the rows of a source have completions too. Text files hold prompts, one a line."""
    bare, _ = parse_source(source)
    if bare.startswith("embedded:"):
        return bare == "embedded:docstrings"
    if not bare.startswith("hub:") and any(kind(path) == ".txt" for path in list_files(Path(bare))):
        return False
    rows = load_rows(bare)
    return bool(rows) and not {"completion", "messages", "conversations"}.isdisjoint(rows[0].values)


def prompt_limit(config: Any, max_prompt_tokens: int, max_new_tokens: int) -> int:
    """Longest prompt, in tokens, that leaves room for the completion in the model's context. UserError when none does."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return max_prompt_tokens
    if max_new_tokens >= context:
        raise UserError(
            f"max_new_tokens: {max_new_tokens} leaves no room for a prompt in the model's context of {context}; lower it"
        )
    return min(max_prompt_tokens, context - max_new_tokens)


def fitting_prompts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_tokens: int
) -> tuple[list[dict[str, Any]], int]:
    """The rows whose prompt fits, with `prompt_ids`, and how many do not: a prompt is never cut, its cue would be lost.

    UserError when none fits.
    """
    ids = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    fitting = [{**row, "prompt_ids": i} for row, i in zip(rows, ids, strict=True) if 0 < len(i) <= max_tokens]
    if not fitting:
        shortest = min(map(len, ids), default=0)
        raise UserError(
            f"prompts: none of {len(ids)} has between 1 and {max_tokens} tokens (shortest: {shortest}); "
            "raise max_prompt_tokens (up to the model's context less max_new_tokens), lower max_new_tokens, or use a model with a longer context"
        )
    return fitting, len(rows) - len(fitting)


def prompt_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[dict[str, Any] | str], vocabulary: int
) -> list[dict[str, Any]]:
    """Rows with `prompt_ids`, as they are, or of texts. UserError for what is neither, and for ids outside of the vocabulary."""
    if isinstance(prompts, str):
        raise UserError(f"prompts: {prompts!r:.60} is one text; give a list of texts, or of rows with prompt_ids")
    for number, prompt in enumerate(prompts, 1):
        if isinstance(prompt, str):
            continue
        ids = prompt.get("prompt_ids") if isinstance(prompt, dict) else None
        if ids is None:
            raise UserError(
                f"prompt {number}: {prompt!r:.60} is neither a text nor a row with prompt_ids; give one of them"
            )
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            raise UserError(
                f"prompt {number}: prompt_ids hold a token that is none of the policy's {vocabulary}; encode it with its tokenizer"
            )
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(encode_prompts(tokenizer, texts) if texts else [])
    return [{"prompt": p, "prompt_ids": next(encoded)} if isinstance(p, str) else p for p in prompts]
