"""Near-duplicates are found exactly as brute force finds them; contamination names both rows."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Preference, deduplicate, find_contamination, load_preferences, similar_texts
from data.overlap import jaccard, shingles, similar_sets

SETS = st.lists(st.frozensets(st.integers(0, 12), min_size=1, max_size=9), max_size=14)


@given(SETS, st.sampled_from([0.2, 0.5, 2 / 3, 0.7, 0.8, 1.0]))
def test_join_equals_brute_force(sets, threshold):
    wanted = [(i, j) for i, j in combinations(range(len(sets)), 2) if jaccard(sets[i], sets[j]) >= threshold]
    assert similar_sets(sets, threshold) == wanted


def test_shingles_and_jaccard():
    assert len(shingles("One two, three FOUR five six seven.")) == 3
    assert shingles("one  two") == shingles("One, two!") != shingles("two one")
    assert shingles("!!") and not shingles("!!") & shingles("??")
    assert jaccard(frozenset({1, 2, 3}), frozenset({2, 3, 4})) == 0.5


def test_similar_texts():
    base = [f"word{i}" for i in range(50)]
    changed = [*base[:49], "other"]  # 45 of 46 shingles shared: 45 / 47
    different = [*base[::2], *base[1::2]]
    assert similar_texts([" ".join(base), " ".join(changed), " ".join(different)], 0.9) == [(0, 1)]
    assert similar_texts([" ".join(base), " ".join(changed)], 0.96) == []


LONG = " ".join(f"w{i}" for i in range(60))


def test_deduplicate_keeps_the_first_and_says_why():
    preferences = [
        Preference(LONG, "good one", "bad one"),
        Preference(LONG.upper(), "Good  one", "bad one."),  # words equal, the full stop differs
        Preference(LONG, "good one", "bad one"),
        Preference(LONG + " more", "good one", "bad one"),
        Preference(LONG, "bad one", "good one"),  # a contradiction is evidence
        Preference(LONG, "good one", "bad one", annotator="b"),  # another person is evidence
        Preference(LONG, "good one", "bad one", criteria="length"),
        Preference(LONG, "another answer", "bad one"),  # a long shared prompt does not hide the answer
    ]
    kept, dropped = deduplicate(preferences)
    assert [preferences.index(p) for p in kept] == [0, 4, 5, 6, 7]
    assert [tuple(d) for d in dropped] == [(1, 0, False), (2, 0, True), (3, 0, False)]
    assert deduplicate(kept) == (kept, [])
    assert [tuple(d) for d in deduplicate(preferences, threshold=1.0)[1]] == [(1, 0, False), (2, 0, True)]


def test_chains_are_not_dropped_whole():
    """b is near a and near c, but c is not near a: c stays."""
    texts = [" ".join(f"w{i + shift}" for i in range(60)) for shift in (0, 4, 8)]
    assert similar_texts(texts, 0.8) == [(0, 1), (1, 2)]
    _, dropped = deduplicate([Preference("same prompt", text, "no") for text in texts])
    assert [(d.row, d.of) for d in dropped] == [(1, 0)]


def test_contamination():
    words = [f"w{i}" for i in range(40)]
    train = ["Something else", "a short one", " ".join(words), "and " + " ".join(words[20:])]
    evaluation = ["A  short ONE", "quite new", " ".join(words[25:38]) + " tail of it", " ".join(words[25:37])]
    found = find_contamination(train, evaluation)
    assert [(c.evaluation, c.train, c.exact) for c in found] == [(0, 1, True), (2, 2, False)]
    assert found[0].share == 1.0 and found[1].share == pytest.approx(1 / 4)
    assert find_contamination(train, evaluation[3:], size=12)[0].share == 1.0
    assert find_contamination([], evaluation) == find_contamination(train, []) == []


def test_contamination_of_the_real_split(real):
    """The published split of hh-rlhf shares the beginnings of dialogues between train and test."""
    train, test = (
        [p.prompt for p in load_preferences(real(f"hh_rlhf_harmless/split.{name}.jsonl.gz"), invalid="drop")]
        for name in ("train", "test")
    )
    found = find_contamination(train, test)
    assert len(found) == 22
    for hit in found:
        assert any(
            " ".join(test[hit.evaluation].split()[i : i + 12]) in " ".join(train[hit.train].split()) for i in range(999)
        )
