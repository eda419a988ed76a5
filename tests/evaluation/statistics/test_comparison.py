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
    for test in ("auto", "t"):
        assert s.paired_difference(ours, theirs, test=test).estimate.stderr == pytest.approx(0.0339, abs=3e-4)


def test_paired_difference_at_the_edges():
    same, shifted = s.paired_difference([1.0, 2.0], [1.0, 2.0]), s.paired_difference([2.0, 3.0], [1.0, 2.0])
    assert (same.p_value, shifted.p_value) == (1.0, None) and same.estimate.low is None
    assert s.paired_difference([1.0], [0.0]).p_value is None
    with pytest.raises(ValueError, match="same items"):
        s.paired_difference([1.0, 2.0], [1.0])


def test_clusters_of_copies_add_no_evidence():
    ours, theirs = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), np.zeros(6)
    plain = s.paired_difference(ours, theirs, test="t")
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


def test_mid_p_is_the_exact_p_less_the_probability_of_what_was_seen():
    for b, c in ((10, 2), (39, 26), (0, 5), (1, 0), (7, 8)):
        expected = s.mcnemar_exact(b, c) - stats.binom.pmf(b, b + c, 0.5)
        assert s.mcnemar_mid_p(b, c) == pytest.approx(expected) and s.mcnemar_mid_p(c, b) == s.mcnemar_mid_p(b, c)
    assert s.mcnemar_mid_p(4, 4) == s.mcnemar_mid_p(0, 0) == 1.0
    with pytest.raises(ValueError, match="must not be negative"):
        s.mcnemar_mid_p(-1, 2)
    for test in (s.mcnemar_exact, s.mcnemar_mid_p):
        with pytest.raises(ValueError, match="are no counts"):
            test(2.5, 3)
    assert all(s.mcnemar_exact(b, 20 - b) == pytest.approx(stats.binomtest(b, 20).pvalue) for b in range(21))


def test_mid_p_keeps_its_level_and_the_exact_test_stays_far_below():
    """All discordant counts of 40 items that differ with probability .3, weighted by their probabilities."""
    rejected = {s.mcnemar_mid_p: 0.0, s.mcnemar_exact: 0.0}
    for discordant in range(25):  # more have a probability of 1e-5
        weight = stats.binom.pmf(discordant, 40, 0.3)
        for test in rejected:
            reject = [test(b, discordant - b) <= 0.05 for b in range(discordant + 1)]
            rejected[test] += weight * float(stats.binom.pmf(np.arange(discordant + 1), discordant, 0.5) @ reject)
    assert 0.035 < rejected[s.mcnemar_mid_p] <= 0.052 and rejected[s.mcnemar_exact] < 0.03


def test_right_or_wrong_gets_mcnemar_and_keeps_a_width_where_nothing_differs():
    ours, theirs = [1] * 10 + [0] * 2 + [1] * 88, [0] * 10 + [1] * 2 + [1] * 88
    found = s.paired_difference(ours, theirs)
    assert (found.test, found.p_value) == ("McNemar, mid-p", pytest.approx(s.mcnemar_mid_p(10, 2)))
    assert found.estimate.method == "Bonett-Price" and found.estimate.value == pytest.approx(0.08)
    p, q = 11 / 102, 3 / 102
    half = 1.959964 * np.sqrt((p + q - (p - q) ** 2) / 102)
    assert (found.estimate.low, found.estimate.high) == (pytest.approx(p - q - half), pytest.approx(p - q + half))
    exact = s.paired_difference(ours, theirs, test="mcnemar exact")
    assert exact.p_value == pytest.approx(0.0385742, abs=1e-7)
    never = s.paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert never.p_value == 1.0 and never.estimate.low < -0.2 and never.estimate.high > 0.2
    assert s.paired_difference(ours, theirs, test="t").test == "paired t"
    with pytest.raises(ValueError, match="0 or 1"):
        s.paired_difference([0.5], [1], test="mcnemar")
    with pytest.raises(ValueError, match="no clusters"):
        s.paired_difference([1, 0, 1], [1, 1, 0], clusters="aab", test="mcnemar")


def test_permutation_and_bootstrap_agree_with_t_where_t_is_right():
    g = numpy_generator(4, "agree")
    ours, theirs = g.normal(0.25, 1, 90), np.zeros(90)
    t, flips, boot = (
        s.paired_difference(ours, theirs, test=name, seed=1) for name in ("t", "permutation", "bootstrap")
    )
    assert flips.p_value == pytest.approx(t.p_value, abs=0.01) and flips.estimate == t.estimate
    assert boot.p_value == pytest.approx(t.p_value, abs=0.015)
    assert boot.estimate.low == pytest.approx(t.estimate.low, abs=0.02)
    assert (flips.test, boot.test) == ("paired permutation", "paired bootstrap")


def test_permutation_and_bootstrap_take_whole_clusters():
    ours, theirs = np.array([1.0, 2.0, -0.5, 3.0]), np.zeros(4)
    copied = np.tile(ours, 6), np.tile(theirs, 6)
    clusters = list(range(4)) * 6
    plain, flips = (
        s.paired_difference(ours, theirs, test="permutation"),
        s.paired_difference(*copied, clusters=clusters, test="permutation"),
    )
    assert flips.p_value == plain.p_value and flips.test == "paired permutation, clustered"
    boot = s.paired_difference(*copied, clusters=clusters, test="bootstrap")
    assert boot.estimate.n == 4 and boot.estimate.stderr == pytest.approx(ours.std() / 2, rel=0.05)


def test_clusters_of_right_or_wrong_that_never_or_always_differ_keep_a_width():
    clusters = [i // 4 for i in range(40)]
    never = s.paired_difference([1.0] * 40, [1.0] * 40, clusters=clusters)
    assert never.p_value == 1.0 and never.estimate.n == 10 and never.estimate.method == "Bonett-Price, clustered"
    by_hand = s.bonett_price(0, 0, 10)  # ten clusters say as much as ten items
    assert (never.estimate.low, never.estimate.high) == (by_hand.low, by_hand.high)
    always = s.paired_difference([1.0] * 8, [0.0] * 8, clusters=[0] * 4 + [1] * 4)
    assert (always.estimate.value, always.estimate.high) == (1.0, 1.0) and always.estimate.low < 0
    assert (always.p_value, always.test) == (0.5, "paired permutation, clustered")  # two of the four signs


def test_one_difference_everywhere_has_no_interval_and_no_p_value():
    for ours, theirs, clusters in (
        ([0.3, 0.4], [0.1, 0.2], None),  # .2 and .2 but for the last bit
        ([2.0, 3.0, 4.0], [1.0, 2.0, 3.0], None),
        ([0.5, 0.7, 0.5, 0.7], [0.1, 0.3, 0.1, 0.3], "aabb"),
    ):
        found = s.paired_difference(ours, theirs, clusters=clusters, test="t")
        assert (found.estimate.low, found.estimate.stderr, found.p_value) == (None, None, None)
        assert "all the same" in found.estimate.method
    assert s.paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0], test="permutation").p_value == 0.25


def test_bonett_price_of_clusters_covers():
    """12 prompts of 5 samples; three prompts in ten are such that models differ, most samples of it in the same way."""
    g, hits, runs = numpy_generator(5, "clustered right or wrong"), 0, 600
    clusters = [i // 5 for i in range(60)]
    for _ in range(runs):
        moved, up = g.random(12) < 0.3, g.random(12) < 0.7
        together, alone = g.random(60) < 0.6, g.random(60) < 0.15
        ours = np.where(np.repeat(moved, 5) & together, np.repeat(up, 5), alone).astype(float)
        theirs = np.where(np.repeat(moved, 5) & together, ~np.repeat(up, 5), alone).astype(float)
        found = s.paired_difference(ours, theirs, clusters=clusters)
        hits += found.estimate.low <= 0.3 * 0.6 * 0.4 <= found.estimate.high
    assert hits / runs >= 0.93


def test_what_items_that_never_differ_could_have_resolved():
    never = s.paired_difference([1, 0, 1, 1] * 10, [1, 0, 1, 1] * 10).estimate
    half = (never.high - never.low) / 2
    assert s.smallest_resolvable_difference(never) == pytest.approx(half / 1.96 * (2.0227 + 0.8512), rel=1e-3)
    assert s.smallest_resolvable_difference(s.paired_difference([2.0, 3.0], [1.0, 2.0]).estimate) is None
