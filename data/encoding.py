"""Text to token ids, the same for training, scoring and sampling: prompt ids, then completion ids that end in EOS.

Prompt and completion are tokenised apart and joined as ids. So a prompt has the same ids in SFT, in the reward
model and in front of a rollout, which `tokenize(prompt + completion)` does not promise (merges across the border).
Whoever encodes leaves out or refuses what is too long, so the tokenizer's own word about it (`verbose`) is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.records import Turns
from launch.errors import UserError

Ids = list[int]


def encode_prompts(tokenizer: Any, prompts: Sequence[Turns]) -> list[Ids]:
    """Token ids of each prompt: text as it is (with BOS where the tokenizer adds one), messages by the chat template."""
    if prompts and all(isinstance(prompt, str) for prompt in prompts):
        return [
            list(ids) for ids in tokenizer(list(prompts), verbose=False)["input_ids"]
        ]  # one call: 10 times faster than many
    return [
        list(tokenizer(prompt, verbose=False)["input_ids"])
        if isinstance(prompt, str)
        else _render(tokenizer, prompt, True)
        for prompt in prompts
    ]


def encode_completions(
    tokenizer: Any, prompts: Sequence[Turns], completions: Sequence[Turns], ended: Sequence[bool] | None = None
) -> list[Ids]:
    """Token ids of each completion: text as it is; after messages, what the chat template adds to them.

    They end in EOS where they `ended` (all, unless given). Each row is encoded by itself: its neighbours do not matter.
    UserError for a tokenizer that has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{getattr(tokenizer, 'name_or_path', '') or 'tokenizer'}: has no end token, with which answers end; name its "
            "`eos_token` in tokenizer_config.json"
        )
    if completions and all(isinstance(turns, str) for turns in [*prompts, *completions]):
        texts = tokenizer(list(completions), add_special_tokens=False, verbose=False)["input_ids"]
        rows = [[*ids, tokenizer.eos_token_id] for ids in texts]
    else:
        rows = [_encode_completion(tokenizer, *pair) for pair in zip(prompts, completions, strict=True)]
    return rows if ended is None else [ids if end else ids[:-1] for ids, end in zip(rows, ended, strict=True)]


def _encode_completion(tokenizer: Any, prompt: Turns, completion: Turns) -> Ids:
    if isinstance(prompt, str):
        if not isinstance(completion, str):
            raise UserError("a completion given as messages follows a prompt given as text; give both as messages")
        return encode_completions(tokenizer, [prompt], [completion])[0]
    answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    before = _render(tokenizer, prompt, True)
    ids = _render(tokenizer, [*prompt, *answer], False)
    if ids[: len(before)] != before:
        raise UserError(
            "chat template: the rendered prompt is not the beginning of the rendered conversation, so the completion "
            "cannot be told apart; use a template that renders a prompt the same with and without its answer"
        )
    return _until_eos(ids[len(before) :], tokenizer.eos_token_id)


def _render(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> Ids:
    if not tokenizer.chat_template:
        raise UserError(
            "chat template: the rows are messages, but the tokenizer has no chat template; give rows of plain text, or "
            "a model whose tokenizer has a template"
        )
    return list(
        tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            return_dict=False,
            tokenizer_kwargs={"verbose": False},
        )
    )


def _until_eos(ids: Ids, eos_id: int) -> Ids:
    """Cut what a template writes after its last EOS (a line break, mostly); add EOS where it writes none."""
    if eos_id not in ids:
        return [*ids, eos_id]
    return ids[: len(ids) - ids[::-1].index(eos_id)]


def keep_fitting(
    rows: Sequence[dict[str, Any]], lengths: Sequence[int], limit: int
) -> tuple[list[dict[str, Any]], int]:
    """The rows of at most `limit` tokens, and how many were longer: those are left out, never cut (checklist item 4).

    A cut prompt loses its cue and a cut completion its end. UserError, naming the first row, when nothing is left.
    """
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    if rows and not kept:
        others = f", and so do the other {len(rows) - 1}" if len(rows) > 1 else ""
        raise UserError(
            f"{rows[0]['origin'] or 'the row'}: takes {lengths[0]} tokens, the context holds {limit}{others}; shorten "
            "the rows, or raise max_length as far as the model's context goes"
        )
    return kept, len(rows) - len(kept)
