"""Near-duplicates are found exactly as brute force finds them; contamination names both rows."""

import tracemalloc
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data import Preference, deduplicate, find_contamination, load_preferences, overlap, similar_texts
from data.overlap import Duplicate, jaccard, shingles, similar_rows, similar_sets
from data.records import normalise

SETS = st.lists(st.frozensets(st.integers(0, 12), min_size=1, max_size=9), max_size=14)
SMALL = st.frozensets(st.integers(0, 5), min_size=1, max_size=5)
THRESHOLDS = st.sampled_from([0.2, 0.5, 2 / 3, 0.7, 0.8, 1.0])


@given(SETS, THRESHOLDS)
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


def first_alike(count, alike):
    """Greedy by definition: each row that is like an earlier one that stays, and the first such row."""
    found = {}
    for row in range(count):
        of = next((other for other in range(row) if other not in found and alike(other, row)), None)
        if of is not None:
            found[row] = of
    return found


@given(st.lists(st.tuples(SMALL, SMALL, SMALL), min_size=1, max_size=14), THRESHOLDS)
def test_similar_rows_equal_brute_force(rows, threshold):
    def alike(i, j):
        return all(jaccard(a, b) >= threshold for a, b in zip(rows[i], rows[j], strict=True))

    assert similar_rows(rows, threshold) == first_alike(len(rows), alike)


# few words and marks, so that equal, nearly equal and chained texts are all common; up to 12 words are 8 shingles
TEXTS = st.lists(st.sampled_from(["a", "A", "b", "b.", "!"]), max_size=12).map(" ".join)
PREFERENCES = st.builds(Preference, TEXTS, TEXTS, TEXTS, annotator=st.sampled_from(["", "x"]), tie=st.booleans())


@given(st.lists(PREFERENCES, max_size=12), st.lists(st.integers(0, 11), max_size=4), THRESHOLDS)
@example([Preference("p", LONG + end, "no") for end in ("", " more", " MORE", "")], [], 0.8)
def test_deduplicate_equals_brute_force(preferences, repeated, threshold):
    rows = preferences + [preferences[i] for i in repeated if i < len(preferences)]
    texts = [(row.prompt, row.chosen, row.rejected) for row in rows]

    def alike(i, j):
        judges = [(row.criteria, row.annotator, row.tie) for row in (rows[i], rows[j])]
        similar = (jaccard(shingles(a), shingles(b)) >= threshold for a, b in zip(texts[i], texts[j], strict=True))
        return judges[0] == judges[1] and all(similar)

    near = first_alike(len(rows), alike)
    kept, dropped = deduplicate(rows, threshold)
    assert dropped == [
        Duplicate(i, of, [*map(normalise, texts[i])] == [*map(normalise, texts[of])]) for i, of in near.items()
    ]
    assert [id(row) for row in kept] == [id(row) for i, row in enumerate(rows) if i not in near]


SYSTEM = " ".join(f"s{i}" for i in range(150))


def answer(row):
    return " ".join(f"a{row}x{i}" for i in range(8))


@pytest.mark.parametrize(
    ("row", "comparisons"),
    [
        pytest.param(lambda i: Preference(SYSTEM, answer(i), "no " + answer(i)), 0, id="shared-prompt"),
        pytest.param(lambda i: Preference(SYSTEM + f" question {i}", answer(i), "no"), 0, id="system-prompt"),
        pytest.param(lambda i: Preference(SYSTEM, "yes", answer(i)), 0, id="shared-prompt-and-chosen"),
        pytest.param(lambda i: Preference(answer(i), SYSTEM, SYSTEM + " no"), 0, id="shared-answers"),
        pytest.param(lambda i: Preference(SYSTEM, "yes", "no"), 0, id="equal"),
        # three parts of each row against the one row that stays
        pytest.param(lambda i: Preference(SYSTEM, "yes" + "!" * i, "no"), 3 * 49, id="equal-words"),
    ],
)
def test_what_rows_share_costs_no_comparison(monkeypatch, row, comparisons):
    calls = []
    monkeypatch.setattr(overlap, "jaccard", lambda a, b: calls.append(0) or jaccard(a, b))
    deduplicate([row(i) for i in range(50)])
    assert len(calls) == comparisons


def test_memory_grows_with_the_rows_and_not_with_their_pairs():
    """The rows differ in marks alone, so every two of them are a pair that a list of pairs would hold."""

    def peak(rows):
        preferences = [Preference("prompt", "yes" + "!" * i, "no") for i in range(rows)]
        tracemalloc.start()
        try:
            assert len(deduplicate(preferences)[0]) == 1
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(400) < 6 * peak(100)  # pairs would be 16 times as many


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
