import numpy as np
import pytest

from evaluation.statistics import cohen_kappa, krippendorff_alpha
from launch.seeding import numpy_generator

NAN = np.nan
CODERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T
"""Krippendorff's (2011) own example: four coders, twelve units, five values."""


@pytest.mark.parametrize(("scale", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorffs_example(scale, alpha):
    found = krippendorff_alpha(CODERS, scale)
    assert found.value == pytest.approx(alpha, abs=5e-4) and found.n == 11  # one unit has a single rating
    assert (found.low < found.value < found.high and found.method == "jackknife over units, t") or found.method


def test_alpha_is_one_for_perfect_and_about_zero_for_random_ratings():
    assert krippendorff_alpha([[1, 1], [0, 0], [1, 1]]).value == pytest.approx(1)
    random = numpy_generator(0, "test").integers(0, 3, (3000, 2)).astype(float)
    found = krippendorff_alpha(random)
    assert abs(found.value) < 0.05 and found.low < 0 < found.high


def test_a_single_value_has_no_agreement_beyond_chance():
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1, NAN], [0, NAN]]) is None
    assert cohen_kappa("aa", "aa") is None


def test_kappa_of_a_table():
    """20 and 15 on the diagonal, 5 and 10 off it: p_o .7, p_e .5, kappa .4."""
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second).value == pytest.approx(0.4)
    assert cohen_kappa("abc", "abc").value == 1 and cohen_kappa("ab", "ba").value == -1


def test_the_error_of_kappa_is_that_of_the_bootstrap():
    generator = numpy_generator(1, "test")
    first = generator.integers(0, 3, 400)
    second = np.where(generator.random(400) < 0.6, first, generator.integers(0, 3, 400))
    rows = [generator.integers(0, 400, 400) for _ in range(2000)]
    drawn = [cohen_kappa_value(first[r], second[r]) for r in rows]
    found = cohen_kappa(first.tolist(), second.tolist())
    assert found.value == pytest.approx(cohen_kappa_value(first, second))
    assert found.stderr == pytest.approx(np.std(drawn), rel=0.06)


def cohen_kappa_value(a, b):
    observed = (a == b).mean()
    expected = sum((a == k).mean() * (b == k).mean() for k in range(3))
    return (observed - expected) / (1 - expected)


def test_copies_in_clusters_add_no_certainty():
    first, second = list("aabbabab"), list("abbbabaa")
    one = cohen_kappa(first, second)
    copies = cohen_kappa(first * 5, second * 5, clusters=list(range(8)) * 5)
    assert copies.value == pytest.approx(one.value) and copies.stderr == pytest.approx(one.stderr) and copies.n == 8
    wide, copied = krippendorff_alpha(CODERS), krippendorff_alpha(np.tile(CODERS, (5, 1)), clusters=list(range(12)) * 5)
    assert copied.stderr == pytest.approx(wide.stderr, rel=0.05)


def test_one_unit_has_no_interval():
    found = krippendorff_alpha([[1, 0]])
    assert found.low is None and "none" in found.method


def test_intervals_cover_at_their_level():
    """Kappa, and alpha of three raters with gaps, on 80 units of known truth."""
    generator, hits = numpy_generator(5, "cover agreement"), np.zeros(2)
    for _ in range(400):
        truth = generator.integers(0, 3, 80)
        kept = generator.random((80, 3)) < 0.7
        ratings = np.where(kept, truth[:, None], generator.integers(0, 3, (80, 3))).astype(float)
        kappa = cohen_kappa(ratings[:, 0].tolist(), ratings[:, 1].tolist())
        ratings[generator.random((80, 3)) < 0.2] = NAN
        alpha = krippendorff_alpha(ratings)
        hits += [found.low <= 0.49 <= found.high for found in (kappa, alpha)]  # two keep the truth: 0.7 x 0.7
    assert ((hits >= 0.92 * 400) & (hits <= 0.98 * 400)).all(), hits


def test_limits_stay_at_one_and_agreement_everywhere_claims_no_certainty():
    same = cohen_kappa("aabbab", "aabbab")
    assert (same.value, same.low, same.stderr) == (1.0, None, None)
    nearly = cohen_kappa("aaaabbbbbb", "aaaabbbbba")
    assert nearly.low < nearly.value < nearly.high <= 1
