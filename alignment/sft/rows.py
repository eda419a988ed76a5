"""Pairs to rows of token ids with masked prompts, and the audit of that mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from data import Pair
from data.encoding import encode_completions, encode_prompts, keep_fitting

IGNORE = -100
Row = dict[str, Any]
AUDIT_BATCH = 256


def make_rows(tokenizer: Any, pairs: Sequence[Pair], limit: int) -> tuple[list[Row], int]:
    """Rows {input_ids, labels, pair} of the pairs that fit, and how many were too long.

    `labels` holds the completion's ids and EOS, and -100 on the prompt: only completions are learned.
    """
    prompts = [pair.prompt for pair in pairs]
    prompt_ids = encode_prompts(tokenizer, prompts)
    completion_ids = encode_completions(tokenizer, prompts, [pair.completion for pair in pairs])
    rows = [
        {"input_ids": p + c, "labels": [IGNORE] * len(p) + c, "pair": pair, "origin": pair.origin}
        for p, c, pair in zip(prompt_ids, completion_ids, pairs, strict=True)
    ]
    return keep_fitting(rows, [len(row["input_ids"]) for row in rows], limit)


def audit_mask(tokenizer: Any, rows: Sequence[Row], collate: Callable[[list[Row]], dict[str, Any]]) -> float:
    """The share of trained tokens that the collator produces. RuntimeError when it is not what the texts say.

    The expected counts come from the texts again, by another way: lengths of the tokenised completions, or for
    messages the character offsets at which the rendered prompt ends. Labels that are shifted, cut or masked by
    padding (a lost EOS) change the count.
    """
    trained = total = 0
    for start in range(0, len(rows), AUDIT_BATCH):
        part = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows[start : start + AUDIT_BATCH]]
        batch = collate(part)
        trained += int((batch["labels"] != IGNORE).sum())
        total += int(batch["attention_mask"].sum())
    expected = expected_totals(tokenizer, [row["pair"] for row in rows])
    if (trained, total) != expected:
        raise RuntimeError(
            f"audit of the prompt mask: the batches train {trained} of {total} tokens, the data says {expected[0]} of "
            f"{expected[1]}; the chat template or the tokenizer breaks the border between prompt and completion"
        )
    return trained / total


def expected_totals(tokenizer: Any, pairs: Sequence[Pair]) -> tuple[int, int]:
    """(tokens to train, all tokens) of pairs, from their texts."""
    texts = [pair for pair in pairs if isinstance(pair.prompt, str)]
    completion = prompt = 0
    if texts:
        completions = tokenizer([pair.completion for pair in texts], add_special_tokens=False)["input_ids"]
        completion = sum(map(len, completions)) + len(texts)  # each ends in EOS
        prompt = sum(map(len, tokenizer([pair.prompt for pair in texts])["input_ids"]))
    chats = [_chat_counts(tokenizer, pair) for pair in pairs if not isinstance(pair.prompt, str)]
    return completion + sum(c for c, _ in chats), completion + prompt + sum(c + p for c, p in chats)


def _chat_counts(tokenizer: Any, pair: Pair) -> tuple[int, int]:
    """(completion tokens, prompt tokens) of messages: a token is the prompt's if it starts within the rendered prompt."""
    before = tokenizer.apply_chat_template(pair.prompt, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*pair.prompt, *pair.completion], tokenize=False)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    prompt = sum(start < len(before) for start, _ in encoded["offset_mapping"])
    ids = encoded["input_ids"][prompt:]
    ends = [i for i, token in enumerate(ids, 1) if token == tokenizer.eos_token_id]
    return (ends[-1] if ends else len(ids) + 1), prompt
