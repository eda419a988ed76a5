"""Corpus perplexity by sliding windows: per token, per word, per byte, and bits per byte.

A document is scored as one sequence, and no document sees another. Where the tokenizer has a BOS it comes first, and
every token of the document is predicted. Without one the first token is given and the others are predicted: EOS in
its place would be an input that no pretraining on documents alone (alignkit's own, see data/packing.py) has given a
gradient. Bytes, words and tokens are those of the predicted part, so bits per byte keep their meaning.

Documents longer than the context are cut into overlapping windows, and each token is scored once, in the first window
that reaches it. Perplexities are of the corpus: exp(sum of nats / sum of units).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.records import Document
from data.tokenizer import bytes_of_token
from evaluation.options import BATCH_TOKENS
from evaluation.schema import Metric, metric
from evaluation.scoring import Beat, tail_logprobs
from evaluation.statistics import LEVEL, Estimate, exponential, mean, ratio, scaled
from launch.errors import UserError

NOTHING = "no {} is predicted: without BOS the first token of a document is given"

LARGEST = math.log(sys.float_info.max)


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of a sequence; the last `scored` of them are scored, the others are context."""

    start: int
    stop: int
    scored: int


def sliding_windows(n_tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Windows over a first token and `n_tokens` more (positions 1 to n_tokens) that score each of these exactly once.

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
    """What one document contributes: its negative log-likelihood in nats, and the sizes of what was predicted."""

    nats: float
    tokens: int
    words: int
    bytes: int

    @property
    def perplexity(self) -> float | None:
        """exp(nats / tokens); None where nothing is predicted, or the number would be too large."""
        return math.exp(self.nats / self.tokens) if self.tokens and self.nats / self.tokens < LARGEST else None


@dataclass(frozen=True)
class Perplexity:
    """Scores of the documents of a corpus. A word is a run of characters that are not white space."""

    documents: list[DocumentScore]

    def bits_per_byte(self, level: float = LEVEL) -> Metric:
        """Nats / (ln 2 x UTF-8 bytes): comparable between tokenizers. Delta-method interval over documents."""
        found = self._ratio("bytes", level)
        estimate = found and scaled(found, 1 / math.log(2))
        text = "negative log2-likelihood of held-out text per UTF-8 byte"
        note = "" if found else NOTHING.format("byte")
        return metric("bits_per_byte", estimate, text, higher_is_better=False, unit="bits/byte", note=note)

    def per(self, unit: str, level: float = LEVEL) -> Metric:
        """Perplexity per "token", "word" or "byte": exp(nats / units), its interval taken in the logarithm."""
        name = "perplexity" if unit == "token" else f"{unit}_perplexity"
        ends = ", whose documents have no end token" if unit == "token" else ""
        text = f"exp of the mean negative log-likelihood per {unit} of held-out text{ends}"
        found = self._ratio(f"{unit}s", level)
        note = "" if found else NOTHING.format(unit)
        if found and (found.value > LARGEST or (found.high or 0.0) > LARGEST):
            note, found = f"exp of {found.value:.0f} nats per {unit} is more than a number can hold", None
        return metric(name, found and exponential(found), text, higher_is_better=False, note=note, bounds=(1, None))

    def per_document(self, level: float = LEVEL) -> Metric:
        """The mean of the documents' own perplexities, each exp(nats / tokens): what `evaluate` calls perplexity.

        No perplexity of a corpus: it is never below the geometric mean of the documents, and one bad document rules it.
        """
        values = [d.perplexity for d in self.documents if d.perplexity is not None]
        text = "mean of the perplexities of single documents (as the `evaluate` library reports it)"
        note = "" if values else NOTHING.format("token")
        estimate = mean(values, level) if values else None
        return metric("mean_document_perplexity", estimate, text, higher_is_better=False, note=note, bounds=(1, None))

    def metrics(self, level: float = LEVEL) -> list[Metric]:
        """Bits per byte, the three perplexities of the corpus, and the mean of the documents'."""
        corpus = [self.per(unit, level) for unit in ("token", "word", "byte")]
        return [self.bits_per_byte(level), *corpus, self.per_document(level)]

    def _ratio(self, unit: str, level: float) -> Estimate | None:
        """Nats per unit; None when nothing was predicted (documents of one token, without BOS)."""
        units = [getattr(d, unit) for d in self.documents]
        return ratio([d.nats for d in self.documents], units, level) if sum(units) else None


def conditioning(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the first predicted token of a document is conditioned on, for the protocol."""
    if tokenizer.bos_token_id is not None:
        return "each alone, after BOS"
    return "each alone, from its second token (no BOS)"


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
    owners, sequences, counts = _cut(ids, context, stride)
    scored = tail_logprobs(model, sequences, counts, 1.0, batch_tokens, beat)
    nats = [0.0] * len(texts)
    for number, values in zip(owners, scored, strict=True):
        nats[number] -= float(values.double().sum())
    rests = [_predicted_text(tokenizer, i[0], text) for i, text in zip(ids, texts, strict=True)]
    rows = zip(nats, ids, rests, strict=True)
    return Perplexity([DocumentScore(x, len(i) - 1, len(rest.split()), len(rest)) for x, i, rest in rows])


def _cut(ids: Sequence[list[int]], context: int, stride: int) -> tuple[list[int], list[list[int]], list[int]]:
    """The windows of documents: whose each is, its tokens, and how many of the last of them are scored."""
    plan = [(n, w) for n, i in enumerate(ids) for w in sliding_windows(len(i) - 1, context, stride)]
    return [n for n, _ in plan], [ids[n][w.start : w.stop] for n, w in plan], [w.scored for _, w in plan]


def batch_deviation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document | str],
    context: int,
    batch_tokens: int = BATCH_TOKENS,
) -> tuple[float, int]:
    """Largest |difference| in nats of a token's log-probability scored in a batch and alone, and the tokens compared.

    Of the first window of each document: that is where lengths, and so padding, differ.
    """
    texts = [d if isinstance(d, str) else d.text for d in documents]
    windows = [ids[: context + 1] for ids in _token_ids(tokenizer, texts)]
    counts = [len(w) - 1 for w in windows]
    together, alone = (tail_logprobs(model, windows, counts, 1.0, budget) for budget in (batch_tokens, 1))
    worst = max((float((a - b).abs().max()) for a, b in zip(together, alone, strict=True) if len(a)), default=0.0)
    return worst, sum(counts)


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
    """The tokens of each text, after BOS where the tokenizer has one. What looks like a special token is text."""
    prefix = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = []
    for number, text in enumerate(texts, 1):
        ids.append(
            [*prefix, *tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]]
        )
        if len(ids[-1]) == len(prefix):
            raise UserError(f"document {number} has no tokens; leave blank documents out")
    return ids


def _predicted_text(tokenizer: PreTrainedTokenizerBase, first: int, text: str) -> bytes:
    """The UTF-8 bytes of a text that are predicted: all after BOS, else those after its first token."""
    return text.encode()[0 if first == tokenizer.bos_token_id else bytes_of_token(tokenizer, first) :]
