"""Duplicates within a set and contamination between sets, found exactly and without random numbers.

Near-duplicates are an exact all-pairs set join: two sets of word n-grams of Jaccard similarity t or more must share
one of their |x| - ceil(t |x|) + 1 rarest members (prefix filter; Chaudhuri et al. 2006, Bayardo et al. 2007). Unlike
MinHash with banding it misses none, and for preference data it is fast enough (see docs/data.md).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from data.records import Preference, normalise, plain_text, words

NGRAM = 13
"""Words of an n-gram that counts as contamination (Brown et al. 2020, appendix C)."""
SHINGLE = 5
"""Words of the n-grams that near-duplicates are compared by."""


def shingles(text: str, size: int = SHINGLE, part: int = 0) -> frozenset[int]:
    """Hashes of the word n-grams of a text; of all its words together if they are fewer, so short texts compare too.

    `part` keeps the shingles of a record's parts apart when their sets are united.
    """
    spoken = words(text) or normalise(text).split()
    last = max(1, len(spoken) - size + 1)
    return frozenset(hash((part, *spoken[at : at + size])) for at in range(last))


def jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """Size of the intersection over size of the union, in [0, 1]."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def similar_sets(sets: Sequence[frozenset[int]], threshold: float) -> list[tuple[int, int]]:
    """Index pairs (i, j), i < j, of all non-empty sets whose Jaccard similarity is `threshold` (above 0) or more."""
    frequency = Counter(member for members in sets for member in members)
    postings: dict[int, list[int]] = defaultdict(list)
    found: list[tuple[int, int]] = []
    for index, members in enumerate(sets):
        rarest = sorted(members, key=lambda member: (frequency[member], member))
        # 1e-9: ceil must not step up because of rounding in threshold * len
        prefix = rarest[: len(members) - math.ceil(threshold * len(members) - 1e-9) + 1]
        candidates = {other for member in prefix for other in postings[member]}
        found.extend((other, index) for other in candidates if jaccard(sets[other], members) >= threshold)
        for member in prefix:
            postings[member].append(index)
    return sorted(found)


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
    groups: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for index, preference in enumerate(preferences):
        groups[preference.criteria, preference.annotator, preference.tie].append(index)
    dropped: dict[int, Duplicate] = {}
    for members in groups.values():
        parts = [[shingles(text, part=part) for part, text in enumerate(_texts(preferences[i]))] for i in members]
        # parts that are each similar to t make unions similar to t, so the join over unions misses none
        for one, other in similar_sets([frozenset().union(*part) for part in parts], threshold):
            first, second = members[one], members[other]
            alike = all(jaccard(a, b) >= threshold for a, b in zip(parts[one], parts[other], strict=True))
            if alike and first not in dropped and second not in dropped:
                dropped[second] = Duplicate(second, first, _same(preferences[first], preferences[second]))
    kept = [preference for index, preference in enumerate(preferences) if index not in dropped]
    return kept, [dropped[index] for index in sorted(dropped)]


def _texts(preference: Preference) -> list[str]:
    return [plain_text(turns) for turns in (preference.prompt, preference.chosen, preference.rejected)]


def _same(first: Preference, second: Preference) -> bool:
    return [normalise(text) for text in _texts(first)] == [normalise(text) for text in _texts(second)]


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
