"""What the likelihood suites share: items with options, their log-probabilities, and a causal or a masked model's scorer.

An option is a text after a context. Context and text are tokenised apart and joined as ids, as everywhere in alignkit.
Without a context the text follows BOS, or the end token where a tokenizer has no BOS (as lm-evaluation-harness does):
the first words of two sentences may be all that differs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.encoding import encode_prompts
from evaluation.options import BATCH_TOKENS
from evaluation.scoring import completion_logprobs, context_of, right_pad
from launch.errors import UserError


class Option(NamedTuple):
    """A text whose probability counts, and what stands before it ("" for nothing)."""

    context: str
    text: str


class Score(NamedTuple):
    """The log-probability of an option in nats, and its number of tokens."""

    nats: float
    tokens: int

    @property
    def per_token(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens


@dataclass(frozen=True)
class Item:
    """One question of a set: its options, and what its metric needs to know about it."""

    id: str
    options: tuple[Option, ...]
    group: str = ""
    """What the report divides by: a category, a bias type."""
    facts: dict[str, Any] = field(default_factory=dict)


Scores = Sequence[Sequence[Score]]
"""Scores of the options of each item."""


def item_length(item: Item) -> int:
    """Characters of an item's options: what it costs to score, roughly."""
    return sum(len(o.context) + len(o.text) for o in item.options)


def option_ids(tokenizer: PreTrainedTokenizerBase, option: Option, where: str) -> tuple[list[int], list[int]]:
    """Token ids of the context (BOS, or the end token, for an empty one) and of the text. UserError for empty text."""
    text = list(tokenizer(option.text, add_special_tokens=False, verbose=False)["input_ids"])
    if option.context:
        context = encode_prompts(tokenizer, [option.context])[0]
    else:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        context = [] if start is None else [start]
    if not text or not context:
        missing = "its tokenizer has neither BOS nor EOS" if not context else "an option has no token"
        raise UserError(f"{where}: {missing}; give another model, or mend the row")
    return context, text


def causal_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    batch_tokens: int = BATCH_TOKENS,
) -> list[list[Score]]:
    """The score of each option by a causal model. UserError names an item that is longer than the context."""
    limit = context_of(model)
    pairs = [pair for item in items for pair in causal_ids(tokenizer, item, limit)]
    found = completion_logprobs(model, [c for c, _ in pairs], [t for _, t in pairs], batch_tokens=batch_tokens)
    scores = iter(Score(float(values.double().sum()), len(values)) for values in found)
    return [[next(scores) for _ in item.options] for item in items]


def causal_ids(tokenizer: PreTrainedTokenizerBase, item: Item, limit: int | None) -> list[tuple[list[int], list[int]]]:
    """Ids of the context and of the text of each option; UserError for one that a context of `limit` tokens does not hold."""
    pairs = [option_ids(tokenizer, option, item.id) for option in item.options]
    _check_lengths(item, [len(context) + len(text) for context, text in pairs], None if limit is None else limit + 1)
    return pairs


def _check_lengths(item: Item, lengths: Sequence[int], most: int | None) -> None:
    if most is not None and max(lengths) > most:
        raise UserError(
            f"{item.id}: an option has {max(lengths)} tokens, more than the {most} that the model can score; "
            "use a model with a longer context, or leave the item out"
        )


def find_unscorable(items: Sequence[Item], check: Callable[[Item], object]) -> dict[int, str]:
    """Number -> what is wrong, of the items for which `check` raises a UserError."""
    faults = {}
    for number, item in enumerate(items):
        try:
            check(item)
        except UserError as error:
            faults[number] = str(error)
    return faults


# ---------------------------------------------------------------------------------------------- masked models


def shared_positions(first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
    """The positions of tokens that two sentences share, in order, in the first and in the second (Nangia et al. 2020)."""
    blocks = difflib.SequenceMatcher(None, list(first), list(second), autojunk=False).get_matching_blocks()
    pairs = [(b.a + i, b.b + i) for b in blocks for i in range(b.size)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def pseudo_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item, batch_tokens: int = BATCH_TOKENS
) -> list[Score]:
    """Pseudo-log-likelihoods of two sentences by a masked model: each token that both have is masked in turn and predicted.

    What differs is given, so that a name that is frequent by itself does not decide (Nangia et al. 2020, equation 1).
    Special tokens are never masked.
    """
    rows = masked_ids(tokenizer, item, context_of(model))
    special = set(tokenizer.all_special_ids)
    places = shared_positions(*rows)
    return [
        _masked_sum(model, tokenizer.mask_token_id, ids, [p for p in where if ids[p] not in special], batch_tokens)
        for ids, where in zip(rows, places, strict=True)
    ]


def masked_ids(tokenizer: PreTrainedTokenizerBase, item: Item, limit: int | None) -> list[list[int]]:
    """Ids of the two sentences with their special tokens; UserError where a masked model cannot compare them.

    `limit` is that of the model; some tokenizers know of a lower one (RoBERTa's first positions stand for no token).
    """
    if len(item.options) != 2 or any(option.context for option in item.options):
        raise UserError(f"{item.id}: a masked model scores pairs of sentences (CrowS-Pairs) only; give a causal model")
    if tokenizer.mask_token_id is None:
        raise UserError("model: its tokenizer has no mask token, so it is not a masked model; set likelihood: causal")
    rows = [list(tokenizer(option.text, verbose=False)["input_ids"]) for option in item.options]
    known = [most for most in (limit, tokenizer.model_max_length) if most is not None]
    _check_lengths(item, [len(row) for row in rows], min(known))
    return rows


def _masked_sum(model: Any, mask_id: int, ids: list[int], places: list[int], batch_tokens: int) -> Score:
    device = next(model.parameters()).device
    size, total = max(1, batch_tokens // len(ids)), 0.0
    for start in range(0, len(places), size):
        part = places[start : start + size]
        masked = [[mask_id if i == place else token for i, token in enumerate(ids)] for place in part]
        inputs = right_pad(masked, 0, device)
        with torch.no_grad():
            logits_BSV = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        rows_B = torch.arange(len(part), device=device)
        logprobs_BV = logits_BSV[rows_B, torch.tensor(part, device=device)].float().log_softmax(-1)
        total += float(logprobs_BV[rows_B, torch.tensor([ids[p] for p in part], device=device)].double().sum())
    return Score(total, max(1, len(places)))
