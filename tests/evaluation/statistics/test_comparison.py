import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evaluation import statistics as s
from launch.seeding import numpy_generator


def test_mcnemar_known_answers():
    assert s.mcnemar_exact(10, 2) == pytest.approx(0.0385742, abs=1e-7)
    assert s.mcnemar_exact(39, 26) == pytest.approx(0.1360324, abs=1e-7)
    assert s.mcnemar_exact(0, 0) == 1.0 and s.mcnemar_exact(3, 7) == s.mcnemar_exact(7, 3)


def test_paired_difference_is_scipys_paired_t_and_beats_the_unpaired():
    g = numpy_generator(1, "paired")
    hard = g.normal(0, 3, 80)
    ours, theirs = hard + g.normal(0.3, 0.5, 80), hard + g.normal(0, 0.5, 80)
    d = s.paired_difference(ours, theirs)
    assert d.p_value == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert d.estimate.value == pytest.approx((ours - theirs).mean())
    assert d.p_value < 0.01 < stats.ttest_ind(ours, theirs).pvalue


def test_paired_hundred_items_eight_net():
    ours = np.array([1] * 10 + [0] * 2 + [1] * 88)
    theirs = np.array([0] * 10 + [1] * 2 + [1] * 88)
    assert s.paired_difference(ours, theirs).estimate.stderr == pytest.approx(0.0339, abs=3e-4)


def test_paired_difference_at_the_edges():
    same, shifted = s.paired_difference([1.0, 2.0], [1.0, 2.0]), s.paired_difference([2.0, 3.0], [1.0, 2.0])
    assert (same.p_value, shifted.p_value) == (1.0, 0.0)
    assert s.paired_difference([1.0], [0.0]).p_value is None
    with pytest.raises(ValueError, match="same items"):
        s.paired_difference([1.0, 2.0], [1.0])


def test_clusters_of_copies_add_no_evidence():
    ours, theirs = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), np.zeros(6)
    plain = s.paired_difference(ours, theirs)
    copied = s.paired_difference(np.tile(ours, 5), np.tile(theirs, 5), clusters=list(range(6)) * 5)
    assert copied.p_value == pytest.approx(plain.p_value) and copied.estimate.n == 6


def test_sign_flips_enumerate_small_sets():
    x = np.array([1.0, 2.0, -0.5, 3.0])
    sums = [abs(float(np.dot(x, signs))) for signs in itertools.product([1, -1], repeat=4)]
    assert s.sign_flip_test(x, 0, "t") == pytest.approx(np.mean(np.array(sums) >= abs(x.sum()) - 1e-12))


def test_random_sign_flips_agree_with_the_t_test_and_are_never_zero():
    x = numpy_generator(2, "flips").normal(0.25, 1, 100)
    p = s.sign_flip_test(x, 0, "t", resamples=20_000)
    assert p == pytest.approx(stats.ttest_1samp(x, 0).pvalue, abs=0.01)
    assert s.sign_flip_test(np.ones(40), 0, "t", resamples=99) == 0.01


def test_holm_and_benjamini_hochberg_textbook():
    p = [0.01, 0.04, 0.03, 0.005]
    assert s.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_agree_with_their_definitions(p):
    assert s.benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p, method="bh"))
    assert (s.holm(p) >= s.benjamini_hochberg(p) - 1e-12).all()
    assert (s.holm(p) >= np.array(p) - 1e-12).all() and (s.holm(p) <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()


def test_groups_chain_through_overlap():
    # a and c do not overlap, but b overlaps both: no boundary between them can be defended
    assert s.significance_groups([5, 4, 3], [6, 5.5, 4.5]) == [1, 1, 1]
    assert s.significance_groups([5, 3, 0], [6, 4, 2]) == [1, 2, 3]
    assert s.significance_groups([0, 5, 5.5], [1, 6, 7]) == [3, 1, 1]
    assert s.significance_groups([0, 5, 5.5], [1, 6, 7], higher_is_better=False) == [1, 2, 2]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=8), st.booleans())
def test_overlapping_entries_are_never_ranked_apart(pairs, higher):
    low, high = [a for a, _ in pairs], [a + w for a, w in pairs]
    ranks = s.significance_groups(low, high, higher)
    for i, j in itertools.combinations(range(len(pairs)), 2):
        if low[i] <= high[j] and low[j] <= high[i]:
            assert ranks[i] == ranks[j]
        elif ranks[i] != ranks[j]:
            better = i if (low[i] > high[j]) == higher else j
            assert ranks[better] == min(ranks[i], ranks[j])
