"""Verbatim copies of training text in completions: exact spans of a given length, in characters or words.

A span that also stands in the completion's own prompt is not counted: repeating the prompt is no memory. Found
spans are checked for equality, so that there are no false matches; white space is collapsed on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["characters", "words"]
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
CHUNK = 1 << 20  # symbols of a document that are hashed at once


class CharacterSymbols:
    """Texts as code points; runs of white space are one space."""

    def encode(self, text: str, learn: bool) -> NDArray[np.uint32]:
        """The symbols of a text; `learn` means nothing here."""
        return np.frombuffer(" ".join(text.split()).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


class WordSymbols:
    """Texts as numbers of words; 0 for words that were in no text to `learn`."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def encode(self, text: str, learn: bool) -> NDArray[np.uint32]:
        """The symbols of a text, which gets numbers for new words if `learn`."""
        if learn:
            return np.array([self.numbers.setdefault(w, len(self.numbers) + 1) for w in text.split()], dtype=np.uint32)
        return np.array([self.numbers.get(w, 0) for w in text.split()], dtype=np.uint32)


Symbols = CharacterSymbols | WordSymbols


def window_hashes(symbols: NDArray[np.uint32], length: int) -> NDArray[np.uint64]:
    """Polynomial hashes modulo 2^64 of all windows of `length` symbols: (n - length + 1,), by differences of prefix sums."""
    n = symbols.size
    if n < length:
        return np.empty(0, dtype=np.uint64)
    powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(n - 1, _BASE)]))
    inverses = np.cumprod(np.concatenate([[np.uint64(1)], np.full(n - length, _INVERSE)]))
    sums = np.concatenate([[np.uint64(0)], np.cumsum((symbols.astype(np.uint64) + np.uint64(1)) * powers)])
    return (sums[length:] - sums[: n - length + 1]) * inverses


def copied_spans(
    completions: Sequence[str], prompts: Sequence[str], documents: Iterable[str], length: int, unit: Unit = "characters"
) -> list[bool | None]:
    """Whether each completion has a span of `length` units that stands in some document and not in its own prompt.

    None for completions that are shorter than `length`: they cannot have one, and belong in no denominator.
    """
    if length < 1:
        raise ValueError(f"length: {length} is below 1")
    symbols: Symbols = WordSymbols() if unit == "words" else CharacterSymbols()
    texts = [symbols.encode(text, learn=True) for text in completions]
    hashes = [window_hashes(text, length) for text in texts]
    fresh = []
    for own, prompt in zip(hashes, prompts, strict=True):
        given = window_hashes(symbols.encode(prompt, learn=True), length)
        fresh.append(own[~np.isin(own, given)])
    found = _search(texts, fresh, hashes, documents, symbols, length)
    return [bool(np.isin(new, found).any()) if own.size else None for own, new in zip(hashes, fresh, strict=True)]


def _search(
    texts: Sequence[NDArray[np.uint32]],
    fresh: Sequence[NDArray[np.uint64]],
    hashes: Sequence[NDArray[np.uint64]],
    documents: Iterable[str],
    symbols: Symbols,
    length: int,
) -> NDArray[np.uint64]:
    """The hashes among `fresh` whose spans stand in the documents, compared symbol by symbol."""
    table = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *fresh]))
    if not table.size:
        return table
    place = {int(h): (n, i) for n, own in enumerate(hashes) for i, h in enumerate(own)}
    found = np.zeros(table.size, dtype=bool)
    for document in documents:
        text = symbols.encode(document, learn=False)
        for start in range(0, max(1, text.size - length + 1), CHUNK):
            part = text[start : start + CHUNK + length - 1]
            seen = window_hashes(part, length)
            slots = np.minimum(np.searchsorted(table, seen), table.size - 1)
            for i in np.flatnonzero((table[slots] == seen) & ~found[slots]):
                number, offset = place[int(seen[i])]
                same = np.array_equal(texts[number][offset : offset + length], part[i : i + length])
                found[slots[i]] = found[slots[i]] or same
    return table[found]
