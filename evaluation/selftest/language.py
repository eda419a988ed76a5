"""Known answers of perplexity and of text quality."""

from __future__ import annotations

import math

from evaluation.language.perplexity import DocumentScore, Perplexity, sliding_windows
from evaluation.language.quality import distinct, repetition
from evaluation.schema import Metric
from evaluation.selftest.registry import KnownAnswer


def _value(metric: Metric) -> float:
    return math.nan if metric.value is None else metric.value


def _corpus() -> float:
    """Two texts of 10 tokens with perplexities 2 and 8: the corpus has 4, the mean of the two would be 5."""
    texts = [DocumentScore(10 * math.log(p), 10, 5, 40) for p in (2, 8)]
    return _value(Perplexity(texts).per("token"))


def _uniform_bytes() -> tuple[float, float]:
    """A model that gives every byte 1/256: 8 bits, and a perplexity of 256 for each."""
    scores = Perplexity([DocumentScore(40 * math.log(256), 40, 8, 40), DocumentScore(9 * math.log(256), 9, 2, 9)])
    return _value(scores.bits_per_byte()), _value(scores.per("byte"))


def _windows(context: int, stride: int) -> tuple[int, ...]:
    """First and last input, first and last scored, of the windows over a prefix (-1) and tokens 0 .. 33."""
    found: list[int] = []
    for window in sliding_windows(34, context, stride):
        found += [window.start - 1, window.stop - 3, window.stop - 1 - window.scored, window.stop - 2]
    return tuple(found)


def _every_token_once() -> bool:
    """For all contexts and strides up to 12, every one of 34 tokens is scored once."""
    cases = [(context, stride) for context in range(1, 13) for stride in range(1, context + 1)]
    return all(
        sorted(t for w in sliding_windows(34, c, k) for t in range(w.stop - w.scored, w.stop)) == list(range(1, 35))
        for c, k in cases
    )


def _distinct() -> float:
    found = distinct([["a", "b", "a"], ["b"]], 1)
    return math.nan if found is None else found.value


ANSWERS = [
    KnownAnswer("perplexity", "two equal texts with 2 and 8", 4.0, _corpus),
    KnownAnswer("bits per byte", "uniform over bytes, and byte perplexity", (8.0, 256.0), _uniform_bytes),
    KnownAnswer("windows", "34 tokens, context 10, disjoint", (-1, 8, 0, 9, 9, 18, 10, 19, 19, 28, 20, 29, 23, 32, 30, 33), lambda: _windows(10, 10)),
    KnownAnswer("windows", "34 tokens, context 10, steps of 3: the second", (2, 11, 10, 12), lambda: _windows(10, 3)[4:8]),
    KnownAnswer("windows", "34 tokens, context 10, steps of 1: how many", 25, lambda: len(_windows(10, 1)) // 4),
    KnownAnswer("windows", "every token is scored once, whatever context and stride", True, _every_token_once),
    KnownAnswer("windows", "no tokens, no window", 0, lambda: len(list(sliding_windows(0, 10, 5)))),
    KnownAnswer("distinct-1", "a b a, b: two of four", 0.5, _distinct),
    KnownAnswer("repetition-1", "a b a b: half", 0.5, lambda: repetition(["a", "b", "a", "b"], 1)),
]  # fmt: skip
