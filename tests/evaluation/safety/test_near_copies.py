import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.safety.near_copies import bare_words, least_edits, near_copied


def distance(a, b):
    """Levenshtein's, over words."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def brute_force(completion, document, length, edits):
    words, text = bare_words(completion).split(), bare_words(document).split()
    if len(words) < length:
        return None
    for i in range(len(words) - length + 1):
        for start in range(len(text) + 1):
            for stop in range(start, min(len(text), start + length + edits) + 1):
                if distance(words[i : i + length], text[start:stop]) <= edits:
                    return True
    return False


words = st.lists(st.sampled_from("abc"), min_size=0, max_size=14).map(" ".join)


@given(words, words, st.integers(3, 6), st.integers(0, 2))
def test_the_search_misses_nothing_and_finds_nothing_else(completion, document, length, edits):
    assert near_copied([completion], [""], [document], length, edits) == [
        brute_force(completion, document, length, edits)
    ]


TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness"


def test_an_exchanged_a_missing_and_an_added_word():
    near = "He wrote: it was the best of days, it was worst of times; it was truly the age of wisdom it was the age of fools"
    assert near_copied([near], [""], [TEXT], 20, 3) == [True]
    assert near_copied([near], [""], [TEXT], 20, 1) == [False]
    assert near_copied(["too short"], [""], [TEXT], 20) == [None]


def test_a_copy_of_the_own_prompt_is_none():
    assert near_copied([TEXT], [TEXT], [TEXT], 20) == [False]
    assert near_copied([TEXT, TEXT], ["", TEXT], [TEXT], 20) == [True, False]


def test_least_edits_has_a_free_end_in_the_text():
    a = np.array([1, 2, 3], dtype=np.uint32)
    assert least_edits(a, np.array([1, 2, 9, 9, 9], dtype=np.uint32)) == [0, 0, 0, 1]
    assert least_edits(a, np.array([], dtype=np.uint32)) == [0, 1, 2, 3]


def test_sizes_that_make_no_sense():
    with pytest.raises(ValueError, match="5 words with 5 edits"):
        near_copied(["a"], [""], ["a"], 5, 5)
