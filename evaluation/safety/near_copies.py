"""Nearly verbatim copies: spans of a completion that stand in the training text but for a few words.

A span of L words is a near copy when at most e = L/10 edits (a word put in, left out or exchanged) make it a piece of a
document. Of e + 1 pieces of the span one is then untouched (the pigeonhole principle), so every near copy holds an
exact match of floor(L / (e + 1)) words. Those seeds are found by hash, and the least edits to their left and right by
dynamic programming (Levenshtein with free ends in the document, Sellers 1980). So nothing is missed, and nothing found
that is none: the search is exact. A seed that also stands in the completion's own prompt is not followed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.safety.memorisation import WordSymbols, window_hashes

EDITS = 0.1
"""Edits for each word of a span, at most."""
Words = NDArray[np.uint32]


def near_copied(
    completions: Sequence[str], prompts: Sequence[str], documents: Iterable[str], length: int, edits: int | None = None
) -> list[bool | None]:
    """Whether each completion has a span of `length` words within `edits` (a tenth of them unless given) of some document.

    None for completions of fewer words: they cannot have one. Words are what white space divides, in lower case and
    without punctuation at their ends.
    """
    edits = int(length * EDITS) if edits is None else edits
    if length < 1 or not 0 <= edits < length:
        raise ValueError(
            f"length: {length} words with {edits} edits; need at least one word and fewer edits than words"
        )
    seed = length // (edits + 1)
    symbols = WordSymbols()
    texts = [symbols.encode(bare_words(text), learn=True) for text in completions]
    table: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        given = set(window_hashes(symbols.encode(bare_words(prompt), learn=True), seed).tolist())
        if text.size >= length:
            for place, found in enumerate(window_hashes(text, seed).tolist()):
                if found not in given:
                    table[found].append((number, place))
    flags: list[bool | None] = [False if text.size >= length else None for text in texts]
    keys = np.array(sorted(table), dtype=np.uint64)
    for document in documents if keys.size else ():
        _search(symbols.encode(bare_words(document), learn=False), keys, table, texts, flags, length, edits, seed)
    return flags


def bare_words(text: str) -> str:
    """The words in lower case without punctuation at their ends."""
    return " ".join(bare for word in text.split() if (bare := word.strip(".,;:!?\"'()[]*_-").lower()))


def _search(
    document: Words,
    keys: NDArray[np.uint64],
    table: dict[int, list[tuple[int, int]]],
    texts: Sequence[Words],
    flags: list[bool | None],
    length: int,
    edits: int,
    seed: int,
) -> None:
    """Follow the seeds that a document holds; sets the flags of completions with a near copy."""
    hashes = window_hashes(document, seed)
    slots = np.minimum(np.searchsorted(keys, hashes), keys.size - 1)
    for j in np.flatnonzero(keys[slots] == hashes):
        for number, i in table[int(hashes[j])]:
            same = np.array_equal(texts[number][i : i + seed], document[j : j + seed])
            if not flags[number] and same and extends(texts[number], i, document, int(j), seed, length, edits):
                flags[number] = True


def extends(text: Words, i: int, document: Words, j: int, seed: int, length: int, edits: int) -> bool:
    """Whether some span of `length` words of `text` around the seed at i is within `edits` of the document around j."""
    rest = length - seed
    reach = rest + edits
    left = least_edits(text[max(0, i - rest) : i][::-1], document[max(0, j - reach) : j][::-1])
    right = least_edits(text[i + seed : i + seed + rest], document[j + seed : j + seed + reach])
    spans = range(max(0, rest - (len(right) - 1)), min(rest, len(left) - 1) + 1)
    return any(left[a] + right[rest - a] <= edits for a in spans)


def least_edits(pattern: Words, text: Words) -> list[int]:
    """[a] = the fewest edits that make the first a words of `pattern` a beginning of `text`: (len(pattern) + 1,)."""
    row = list(range(len(text) + 1))
    best = [0]
    for a, word in enumerate(pattern.tolist(), 1):
        previous, row = row, [a]
        for b, other in enumerate(text.tolist(), 1):
            row.append(min(previous[b] + 1, row[b - 1] + 1, previous[b - 1] + (word != other)))
        best.append(min(row))
    return best
