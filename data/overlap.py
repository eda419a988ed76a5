"""Duplicates within a set and contamination between sets, found exactly and without random numbers.

Near-duplicates are an exact all-pairs set join: two sets of word n-grams of Jaccard similarity t or more must share
one of their |x| - ceil(t |x|) + 1 rarest members (prefix filter; Chaudhuri et al. 2006, Bayardo et al. 2007). Unlike
MinHash with banding it misses none. What it costs on preferences is in docs/data.md, detail 15.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from data.records import Preference, normalise, plain_text, words

NGRAM = 13
"""Words of an n-gram that counts as contamination (Brown et al. 2020, appendix C)."""
SHINGLE = 5
"""Words of the n-grams that near-duplicates are compared by."""


def shingles(text: str, size: int = SHINGLE) -> frozenset[int]:
    """Hashes of the word n-grams of a text; of all its words together if they are fewer, so short texts compare too."""
    spoken = words(text) or normalise(text).split()
    last = max(1, len(spoken) - size + 1)
    return frozenset(hash(tuple(spoken[at : at + size])) for at in range(last))


def jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """Size of the intersection over size of the union, in [0, 1]."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def similar_sets(sets: Sequence[frozenset[int]], threshold: float) -> list[tuple[int, int]]:
    """Index pairs (i, j), i < j, of all non-empty sets whose Jaccard similarity is `threshold` (above 0) or more."""
    postings: dict[int, list[int]] = defaultdict(list)
    found: list[tuple[int, int]] = []
    for index, prefix in enumerate(_prefixes(sets, threshold)):
        candidates = {other for member in prefix for other in postings[member]}
        found.extend((other, index) for other in candidates if jaccard(sets[other], sets[index]) >= threshold)
        for member in prefix:
            postings[member].append(index)
    return sorted(found)


def _prefixes(sets: Sequence[frozenset[int]], threshold: float) -> Iterator[list[int]]:
    """The rarest members of each set, so many that sets of Jaccard similarity `threshold` share one."""
    frequency = Counter(member for members in sets for member in members)
    for members in sets:
        rarest = sorted(members, key=lambda member: (frequency[member], member))
        # 1e-9: ceil must not step up because of rounding in threshold * len
        yield rarest[: len(members) - math.ceil(threshold * len(members) - 1e-9) + 1]


def similar_texts(texts: Iterable[str], threshold: float = 0.8) -> list[tuple[int, int]]:
    """Index pairs (i, j), i < j, of texts whose shingle sets have Jaccard similarity `threshold` or more."""
    return similar_sets([shingles(text) for text in texts], threshold)


class Duplicate(NamedTuple):
    """A row that was left out, and the earlier row it repeats; both are indices into the input."""

    row: int
    of: int
    exact: bool


def deduplicate(preferences: Sequence[Preference], threshold: float = 0.8) -> tuple[list[Preference], list[Duplicate]]:
    """The first of each group of equal or nearly equal judgements, and what was left out.

    Two judgements are duplicates when criteria, annotator and tie agree and prompt, chosen and rejected are each
    similar to `threshold`; exact when the normalised texts are equal. Judgements of one pair that disagree, and
    judgements by different people, are evidence and stay.
    """
    first_of = _first_rows(preferences)
    groups: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for index, preference in enumerate(preferences):
        if first_of[index] == index:
            groups[_judge(preference)].append(index)
    shingles_of = cache(shingles)  # a text that many rows share is cut, and held, once
    near: dict[int, int] = {}
    for members in groups.values():
        rows = [tuple(shingles_of(text) for text in _texts(preferences[index])) for index in members]
        near.update((members[row], members[of]) for row, of in similar_rows(rows, threshold).items())
    # what repeats a row that is left out is near to the row that stays, as that one is
    dropped = [
        Duplicate(index, near.get(first, first), exact=first not in near)
        for index, first in enumerate(first_of)
        if index != near.get(first, first)
    ]
    left_out = {duplicate.row for duplicate in dropped}
    return [preference for index, preference in enumerate(preferences) if index not in left_out], dropped


def similar_rows(rows: Sequence[tuple[frozenset[int], ...]], threshold: float) -> dict[int, int]:
    """The rows that are similar in every part to an earlier row that stays, and the first such row of each.

    Similar rows share a rare member in every part, so one part is enough to find them by: the one with the fewest
    candidates. A prompt, or an answer, that all rows share therefore costs nothing. Only rows that stay are entered.
    """
    postings: list[dict[int, list[int]]] = [defaultdict(list) for _ in rows[0]]
    prefixes = zip(*(_prefixes(part, threshold) for part in zip(*rows, strict=True)), strict=True)
    found: dict[int, int] = {}
    for index, prefix in enumerate(prefixes):
        entries = [[posting[m] for m in members] for posting, members in zip(postings, prefix, strict=True)]
        fewest = min(entries, key=lambda lists: sum(map(len, lists)))
        for other in sorted({other for entry in fewest for other in entry}):
            if all(jaccard(a, b) >= threshold for a, b in zip(rows[other], rows[index], strict=True)):
                found[index] = other
                break
        else:
            for entry in (entry for lists in entries for entry in lists):
                entry.append(index)
    return found


def _first_rows(preferences: Sequence[Preference]) -> list[int]:
    """For each row the first one with the same judge and the same normalised texts: itself, if there is none before."""
    firsts: dict[tuple[object, ...], int] = {}
    keys = ((_judge(preference), *map(normalise, _texts(preference))) for preference in preferences)
    return [firsts.setdefault(key, index) for index, key in enumerate(keys)]


def _judge(preference: Preference) -> tuple[str, str, bool]:
    return preference.criteria, preference.annotator, preference.tie


def _texts(preference: Preference) -> list[str]:
    return [plain_text(turns) for turns in (preference.prompt, preference.chosen, preference.rejected)]


class Contamination(NamedTuple):
    """An evaluation text that training has seen: indices of both, and the share of its n-grams found in training."""

    evaluation: int
    train: int
    exact: bool
    share: float


def find_contamination(train: Iterable[str], evaluation: Iterable[str], size: int = NGRAM) -> list[Contamination]:
    """The evaluation texts that training texts contain: equal after normalisation, or sharing `size` words in a row.

    Texts shorter than `size` words can only match exactly. `train` of a result is the first training text with the
    match; `share` is 1 for an exact one.
    """
    rows = [(normalise(text), _ngrams(text, size)) for text in evaluation]
    # what evaluation holds is looked for, and nothing else of training is kept: that set is the larger by far
    texts, wanted = {text for text, _ in rows}, frozenset().union(*(members for _, members in rows))
    whole: dict[str, int] = {}
    pieces: dict[int, int] = {}
    for index, text in enumerate(train):
        if (key := normalise(text)) in texts:
            whole.setdefault(key, index)
        for member in _ngrams(text, size) & wanted:
            pieces.setdefault(member, index)
    found = []
    for index, (text, members) in enumerate(rows):
        exact = whole.get(text)
        hits = [pieces[member] for member in members if member in pieces]
        if exact is not None:
            found.append(Contamination(index, exact, True, 1.0))
        elif hits:
            found.append(Contamination(index, min(hits), False, len(hits) / len(members)))
    return found


def _ngrams(text: str, size: int) -> frozenset[int]:
    spoken = words(text)
    return frozenset(hash(tuple(spoken[at : at + size])) for at in range(len(spoken) - size + 1))
