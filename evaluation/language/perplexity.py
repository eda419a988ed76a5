"""Corpus perplexity by sliding windows: per token, per word, per byte, and bits per byte.

A document is scored as one sequence that begins after a prefix token (BOS, else EOS): no token is left out, and no
document sees another. Longer ones than the context are cut into overlapping windows, and each token is scored once,
in the first window that reaches it. Perplexities are of the corpus: exp(sum of nats / sum of units).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.records import Document
from evaluation.schema import Metric, metric
from evaluation.scoring import BATCH_TOKENS, Beat, tail_logprobs
from evaluation.statistics import LEVEL, Estimate, exponential, ratio, scaled
from launch.errors import UserError


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of a sequence; the last `scored` of them are scored, the others are context."""

    start: int
    stop: int
    scored: int


def sliding_windows(n_tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Windows over a prefix and `n_tokens` tokens (positions 1 to n_tokens) that score each token exactly once.

    A window has at most `context` inputs, so that at most context + 1 positions. The first scores all it can; each
    later one ends up to `stride` tokens further and scores those, with at least context - stride + 1 inputs before
    them. stride = context cuts into disjoint windows; stride = 1 gives every token the longest context.
    """
    if not 1 <= stride <= context:
        raise ValueError(f"stride: {stride} is not between 1 and the context {context}")
    done = min(n_tokens, context)
    if done:
        yield Window(0, done + 1, done)
    while done < n_tokens:
        new = min(stride, n_tokens - done)
        done += new
        yield Window(done - context, done + 1, new)


@dataclass(frozen=True)
class DocumentScore:
    """What one document contributes: its negative log-likelihood in nats, and its sizes."""

    nats: float
    tokens: int
    words: int
    bytes: int


@dataclass(frozen=True)
class Perplexity:
    """Scores of the documents of a corpus. A word is a run of characters that are not white space."""

    documents: list[DocumentScore]

    def bits_per_byte(self, level: float = LEVEL) -> Metric:
        """Nats / (ln 2 x UTF-8 bytes): comparable between tokenizers. Delta-method interval over documents."""
        estimate = scaled(self._ratio("bytes", level), 1 / math.log(2))
        text = "negative log2-likelihood of held-out text per UTF-8 byte"
        return metric("bits_per_byte", estimate, text, higher_is_better=False, unit="bits/byte")

    def per(self, unit: str, level: float = LEVEL) -> Metric:
        """Perplexity per "token", "word" or "byte": exp(nats / units), its interval taken in the logarithm."""
        name = "perplexity" if unit == "token" else f"{unit}_perplexity"
        text = f"exp of the mean negative log-likelihood per {unit} of held-out text"
        return metric(name, exponential(self._ratio(f"{unit}s", level)), text, higher_is_better=False)

    def metrics(self, level: float = LEVEL) -> list[Metric]:
        """Bits per byte and the three perplexities."""
        return [self.bits_per_byte(level), *(self.per(unit, level) for unit in ("token", "word", "byte"))]

    def _ratio(self, unit: str, level: float) -> Estimate:
        return ratio([d.nats for d in self.documents], [getattr(d, unit) for d in self.documents], level)


def prefix_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands before a document: BOS, or EOS where there is none."""
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has neither a BOS nor an EOS token to begin documents with; set one"
        )
    return int(prefix)


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document | str],
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    beat: Beat | None = None,
) -> Perplexity:
    """Score documents with a causal language model. Blank ones have no tokens to score and are a UserError.

    `context`: inputs of a window, at most (and by default) the model's. `stride`: new tokens of each further window;
    half the context unless given.
    """
    context, stride = window_sizes(model, context, stride)
    texts = [d if isinstance(d, str) else d.text for d in documents]
    ids = _token_ids(tokenizer, texts)
    plan = [(n, w) for n, i in enumerate(ids) for w in sliding_windows(len(i) - 1, context, stride)]
    sequences = [ids[n][w.start : w.stop] for n, w in plan]
    scored = tail_logprobs(model, sequences, [w.scored for _, w in plan], 1.0, batch_tokens, beat)
    nats = [0.0] * len(texts)
    for (number, _), values in zip(plan, scored, strict=True):
        nats[number] -= float(values.double().sum())
    rows = zip(nats, ids, texts, strict=True)
    return Perplexity([DocumentScore(x, len(i) - 1, len(t.split()), len(t.encode())) for x, i, t in rows])


def window_sizes(model: PreTrainedModel, context: int | None, stride: int | None) -> tuple[int, int]:
    """Context and stride of the windows; UserError when they do not fit the model or each other."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = limit if context is None else context
    if context is None:
        raise UserError("context: this model's config names no longest context; give one")
    if limit is not None and context > limit:
        raise UserError(f"context: {context} is more than the model's {limit}; give at most that")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(f"stride: {stride} is not between 1 and the context {context}; give a number between")
    return context, stride


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The prefix token and the tokens of each text."""
    prefix, ids = prefix_token(tokenizer), []
    for number, text in enumerate(texts, 1):
        ids.append([prefix, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]])
        if len(ids[-1]) == 1:
            raise UserError(f"document {number} has no tokens; leave blank documents out")
    return ids
