"""Prompts as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from launch.errors import UserError

Prompt = str | list[dict[str, Any]]


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: plain text, or messages through the tokenizer's chat template up to the assistant's turn."""
    if isinstance(prompt, str):
        return tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_tokens: int
) -> tuple[list[list[int]], int]:
    """Token ids of the prompts that fit, and how many do not: a prompt is never cut, its cue would be lost (item 4).

    UserError when none fits.
    """
    ids = [render_prompt(tokenizer, prompt) for prompt in prompts]
    fitting = [i for i in ids if 0 < len(i) <= max_tokens]
    if not fitting:
        shortest = min(map(len, ids), default=0)
        raise UserError(
            f"prompts: none of {len(ids)} has between 1 and {max_tokens} tokens (shortest: {shortest}); raise max_prompt_tokens"
        )
    return fitting, len(ids) - len(fitting)
