"""Self-BLEU (Zhu et al. 2018, "Texygen"): each text's BLEU with all the others as references; high is monotonous.

BLEU as Papineni et al. 2002 define it: geometric mean of the clipped n-gram precisions, times the brevity penalty
with the closest reference length (the shorter of two equally close ones). A precision of 0 counts 0.1 / its number of
n-grams, so that one missing 4-gram does not erase the rest (smoothing 1 of Chen and Cherry 2014); a text too short for
an order is judged by the orders it has.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Sequence

EPSILON = 0.1
Gram = tuple[str, ...]


def self_bleu(texts: Sequence[Sequence[str]], order: int = 4) -> list[float]:
    """BLEU of each text (a list of words) against all others, in [0, 1]; 0 for a text without words.

    In time linear in the n-grams: of each n-gram only its two highest counts are needed to leave one text out.
    ValueError below two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"self_bleu: {len(texts)} texts; give at least two")
    counts = [[_count(words, n) for words in texts] for n in range(1, order + 1)]
    highest = [_two_highest(level) for level in counts]
    lengths = sorted(map(len, texts))
    return [
        _bleu(number, len(words), [level[number] for level in counts], highest, lengths)
        for number, words in enumerate(texts)
    ]


def _count(words: Sequence[str], n: int) -> Counter[Gram]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _two_highest(counts: Sequence[Counter[Gram]]) -> dict[Gram, tuple[int, int, int]]:
    """n-gram -> (highest count, the text that has it, highest count among the others)."""
    found: dict[Gram, tuple[int, int, int]] = {}
    for number, counter in enumerate(counts):
        for gram, count in counter.items():
            top, owner, second = found.get(gram, (0, -1, 0))
            if count > top:
                found[gram] = (count, number, top)
            elif count > second:
                found[gram] = (top, owner, count)
    return found


def _bleu(
    number: int,
    length: int,
    counts: Sequence[Counter[Gram]],
    highest: Sequence[dict[Gram, tuple[int, int, int]]],
    lengths: Sequence[int],
) -> float:
    logs: list[float] = []
    for counter, tops in zip(counts, highest, strict=True):
        total = counter.total()
        if total == 0:
            break
        matched = 0
        for gram, count in counter.items():
            top, owner, second = tops[gram]
            matched += min(count, second if owner == number else top)
        if matched == 0 and not logs:
            return 0.0  # not a word in common
        logs.append(math.log((matched or EPSILON) / total))
    if not logs:
        return 0.0
    reference = _closest_without_one(lengths, length)
    brevity = min(0.0, 1 - reference / length)
    return math.exp(brevity + sum(logs) / len(logs))


def _closest_without_one(lengths: Sequence[int], own: int) -> int:
    """The length closest to `own` in a sorted list from which one `own` is left out; the shorter of two."""
    at = bisect.bisect_left(lengths, own)
    below = lengths[at - 1] if at > 0 else None
    above = lengths[at + 1] if at + 1 < len(lengths) else None
    if below is None or above is None:
        return int(above if below is None else below)  # type: ignore[arg-type]
    return below if own - below <= above - own else above
