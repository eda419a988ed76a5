import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.language.self_bleu import EPSILON, self_bleu


def plain_bleu(candidate, references, order=4):
    """BLEU by its definition, one candidate and all its references."""
    logs = []
    for n in range(1, order + 1):
        grams = [tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1)]
        if not grams:
            break
        matched = 0
        for gram in set(grams):
            most = max(sum(tuple(r[i : i + n]) == gram for i in range(len(r) - n + 1)) for r in references)
            matched += min(grams.count(gram), most)
        if n == 1 and matched == 0:
            return 0.0
        logs.append(math.log((matched or EPSILON) / len(grams)))
    if not logs:
        return 0.0
    closest = min((abs(len(r) - len(candidate)), len(r)) for r in references)[1]
    brevity = 1.0 if len(candidate) >= closest else math.exp(1 - closest / len(candidate))
    return brevity * math.exp(sum(logs) / len(logs))


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), min_size=2, max_size=6))
def test_is_the_definition_with_all_others_as_references(texts):
    expected = [plain_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(expected, abs=1e-12)


def test_known_answers():
    assert self_bleu([list("abcde")] * 3) == pytest.approx([1.0] * 3)
    assert self_bleu([list("abcd"), list("efgh")]) == [0.0, 0.0]
    # 1-grams 3/4, 2-grams 2/3, 3-grams 1/2, 4-grams 0 -> 0.1/1
    found = self_bleu([list("abcd"), list("abcx")])[0]
    assert found == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25)


def test_one_text_has_no_references():
    with pytest.raises(ValueError, match="1 texts; give at least two"):
        self_bleu([["a"]])
