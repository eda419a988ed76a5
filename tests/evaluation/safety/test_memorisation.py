import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.safety import memorisation
from evaluation.safety.memorisation import copied_spans, window_hashes

DOCUMENTS = [
    "Call me Ishmael. Some years ago, never mind how long precisely.",
    "It was the best of times,\nit was the worst",
]


def brute_force(completions, prompts, documents, length):
    clean = lambda text: " ".join(text.split())  # noqa: E731
    spans = lambda text: {text[i : i + length] for i in range(len(text) - length + 1)}  # noqa: E731
    answers = []
    for completion, prompt in zip(completions, prompts):
        own = spans(clean(completion))
        fresh = own - spans(clean(prompt))
        answers.append(any(s in clean(d) for s in fresh for d in documents) if own else None)
    return answers


def test_copies_are_found_across_line_ends_and_only_there():
    completions = ["He said: it was the best of times, it", "it was the best of meals", "best of", ""]
    assert copied_spans(completions, [""] * 4, DOCUMENTS, 16) == [True, True, None, None]
    assert copied_spans(completions, [""] * 4, DOCUMENTS, 20) == [True, False, None, None]


def test_repeating_the_prompt_is_no_memory():
    text = "Some years ago, never mind how long"
    assert copied_spans([text], [""], DOCUMENTS, 20) == [True]
    assert copied_spans([text], [f"Continue: {text}"], DOCUMENTS, 20) == [False]
    assert copied_spans([f"{text} precisely"], [text], DOCUMENTS, 20) == [True]


def test_words_need_whole_words():
    assert copied_spans(["some years ago, Some years ago, never mind"], [""], DOCUMENTS, 5, "words") == [True]
    assert copied_spans(["Some years ago, never minded how long"], [""], DOCUMENTS, 5, "words") == [False]
    assert copied_spans(["unknown words that no document has"], [""], DOCUMENTS, 2, "words") == [False]


@given(
    st.lists(st.text("ab ", max_size=12), min_size=1, max_size=3),
    st.lists(st.text("ab ", max_size=30), max_size=3),
    st.text("ab", max_size=8),
    st.integers(1, 5),
)
def test_equal_to_brute_force(completions, documents, prompt, length):
    prompts = [prompt] * len(completions)
    assert copied_spans(completions, prompts, documents, length) == brute_force(completions, prompts, documents, length)


def test_long_documents_are_cut_without_losing_a_span(monkeypatch):
    monkeypatch.setattr(memorisation, "CHUNK", 7)
    text = "abcdefghijklmnopqrstuvwxyz0123456789"
    for start in range(17):
        assert copied_spans([text[start : start + 20]], [""], [text], 20) == [True]


def test_equal_hashes_are_not_enough(monkeypatch):
    monkeypatch.setattr(memorisation, "window_hashes", lambda s, n: np.zeros(max(0, s.size - n + 1), dtype=np.uint64))
    assert copied_spans(["abcdef"], [""], ["uvwxyz"], 4) == [False]


def test_hashes_identify_windows():
    symbols = np.random.default_rng(0).integers(0, 60, 5000).astype(np.uint32)
    hashes = window_hashes(symbols, 6)
    windows = np.lib.stride_tricks.sliding_window_view(symbols, 6)
    assert len(hashes) == len(windows)
    assert len(np.unique(hashes)) == len(np.unique(windows, axis=0))
    assert (window_hashes(symbols[100:], 6) == hashes[100:]).all()  # a hash does not depend on where its window stands


def test_length_below_one_is_refused():
    with pytest.raises(ValueError, match="below 1"):
        copied_spans(["a"], [""], [], 0)
