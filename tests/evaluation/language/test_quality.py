import numpy as np
import pytest

from evaluation.language import quality
from tests.evaluation.rows import completion


def test_repetition_counts_ngrams_that_came_before():
    assert quality.repetition(list("abcdefg")) == 0.0
    assert quality.repetition(["a"] * 7) == pytest.approx(0.75)  # 4 four-grams, 1 distinct
    assert quality.repetition(list("abcdabcd")) == pytest.approx(1 / 5)
    assert quality.repetition(["a", "b"]) == 0.0


def test_distinct_known_answer():
    texts = [list("aba"), list("bc")]
    assert quality.distinct(texts, 1).value == pytest.approx(3 / 5)
    assert quality.distinct(texts, 2).value == 1.0
    assert quality.distinct([["a"], ["b"]], 2) is None
    assert quality.distinct([["a", "b"]], 1).low is None


def test_distinct_jackknife_equals_leaving_each_text_out():
    generator = np.random.default_rng(0)
    texts = [list(generator.choice(list("abcdefghij"), size=6)) for _ in range(12)]
    full = quality.distinct(texts, 2)
    left_out = [quality.distinct(texts[:i] + texts[i + 1 :], 2).value for i in range(12)]
    assert full.stderr == pytest.approx(np.sqrt(11 / 12 * np.sum((left_out - np.mean(left_out)) ** 2)))


def test_distinct_jackknife_leaves_out_whole_prompts():
    generator = np.random.default_rng(1)
    texts = [list(generator.choice(list("abcdefghij"), size=6)) for _ in range(12)]
    found = quality.distinct(texts, 2, groups=[i // 3 for i in range(12)])
    left_out = [quality.distinct(texts[: 3 * i] + texts[3 * i + 3 :], 2).value for i in range(4)]
    assert found.stderr == pytest.approx(np.sqrt(3 / 4 * np.sum((left_out - np.mean(left_out)) ** 2)))
    assert found.n == 4 and found.method == "jackknife, normal, clustered"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the list.", False),
        ("", True),
        ("... --- !!!", True),
        ("the the the the the end", True),
        ("the the the the end", False),
        ("to be or not to be or not to be or not to be or not to be or not", True),
        ("42", False),
    ],
)
def test_degenerate_texts(text, expected):
    assert quality.is_degenerate(text) is expected


def test_metrics_of_a_file():
    rows = [completion("p", "one two", 3, True), completion("q", "", 1, True), completion("r", "x y z x", 8, False)]
    found = {m.name: m for m in quality.quality_metrics(rows)}
    assert found["mean_length"].value == 4.0 and found["mean_characters"].value == pytest.approx(14 / 3)
    assert found["share_finished"].value == pytest.approx(2 / 3) and found["share_empty"].value == pytest.approx(1 / 3)
    assert found["distinct_1"].value == pytest.approx(5 / 6)
    assert quality.quality_metrics([*rows, completion("p", "one", 2)])[-1].n == 3  # prompts
    assert all(m.n == 3 for m in found.values())


def test_no_limit_is_below_zero():
    rows = [completion(f"p{n}", "a b c d a b c d e" if n == 0 else "a b c d e f", 3 + 90 * (n == 0)) for n in range(9)]
    found = {m.name: m for m in quality.quality_metrics(rows)}
    assert found["repetition_4"].ci_low == 0 < found["repetition_4"].value
    assert found["mean_length"].ci_low == 0 < found["mean_length"].value


def test_samples_of_one_prompt_are_one_unit():
    rows = [completion("p", "a", 4), completion("p", "b", 4), completion("q", "c", 8), completion("q", "d", 8)]
    length = quality.length_metrics(rows)[0]
    assert length.n == 2 and length.ci_method == "student-t, clustered" and length.stderr == pytest.approx(2.0)


def test_a_file_of_blanks_has_no_distinct_and_says_so():
    found = {m.name: m for m in quality.quality_metrics([completion("p", "", 1), completion("q", " ", 1)])}
    assert found["distinct_1"].value is None and "no completion" in found["distinct_1"].note
