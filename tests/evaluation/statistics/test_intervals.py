import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import statistics as s


def rng(name: str) -> np.random.Generator:
    from launch.seeding import numpy_generator

    return numpy_generator(7, name)


def test_mean_matches_the_textbook_t_interval():
    e = s.mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert e.value == 3.0 and e.n == 5
    assert e.stderr == pytest.approx(math.sqrt(2.5 / 5))
    assert e.high - 3.0 == pytest.approx(2.7764451052 * e.stderr)  # t quantile, 4 degrees of freedom
    assert e.method == "student-t"


def test_mean_of_one_value_claims_no_interval():
    e = s.mean([4.0])
    assert (e.value, e.n, e.stderr, e.low, e.high) == (4.0, 1, None, None, None)


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [[1.0]]])
def test_mean_refuses_what_has_no_mean(bad):
    with pytest.raises(ValueError):
        s.mean(bad)


def test_wilson_known_answers():
    zero, half, full = s.wilson(0, 20), s.wilson(5, 10), s.wilson(20, 20)
    assert (zero.low, zero.high) == (0.0, pytest.approx(0.16113, abs=5e-6))
    assert (half.low, half.high) == (pytest.approx(0.23659, abs=5e-6), pytest.approx(0.76341, abs=5e-6))
    assert (full.low, full.high) == (pytest.approx(1 - zero.high), 1.0)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case):
    from scipy.stats import binomtest

    successes, n = case
    e, reference = s.wilson(successes, n), binomtest(successes, n).proportion_ci(method="wilson")
    assert e.low == pytest.approx(reference.low, abs=1e-12) and e.high == pytest.approx(reference.high, abs=1e-12)
    assert 0 <= e.low <= e.value <= e.high <= 1


def test_proportion_counts_flags_and_refuses_others():
    assert s.proportion([True, False, True, True]).value == 0.75
    with pytest.raises(ValueError, match="0 or 1"):
        s.proportion([0.5])


def test_clustered_mean_known_answer():
    e = s.clustered_mean([1, 1, 0, 0], ["a", "a", "b", "b"])
    assert (e.value, e.n, e.stderr) == (0.5, 2, pytest.approx(0.5))
    assert s.mean([1, 1, 0, 0]).stderr == pytest.approx(0.288675, abs=1e-6)


def test_clusters_of_one_are_the_plain_mean():
    x = rng("clusters").normal(size=30)
    plain, clustered = s.mean(x), s.clustered_mean(x, list(range(30)))
    assert clustered.stderr == pytest.approx(plain.stderr) and clustered.low == pytest.approx(plain.low)


def test_ratio_delta_method_agrees_with_the_bootstrap():
    g = rng("ratio")
    size = g.integers(20, 400, 300).astype(float)
    nats = size * g.normal(0.9, 0.15, 300)
    e = s.ratio(nats, size)
    boot = s.bootstrap(lambda a, b: a.sum(1) / b.sum(1), nats, size, seed=1, purpose="test ratio", resamples=10_000)
    assert e.value == pytest.approx(nats.sum() / size.sum()) == boot.value
    assert e.stderr == pytest.approx(boot.stderr, rel=0.03)
    assert e.low == pytest.approx(boot.low, abs=0.1 * e.stderr) and e.high == pytest.approx(
        boot.high, abs=0.15 * e.stderr
    )


def test_ratio_with_equal_denominators_is_the_mean():
    x = np.array([1.0, 2.0, 4.0])
    plain, e = s.mean(x), s.ratio(x, np.full(3, 2.0))
    assert (e.value, e.stderr, e.low) == (
        pytest.approx(plain.value / 2),
        pytest.approx(plain.stderr / 2),
        pytest.approx(plain.low / 2),
    )


def test_ratio_on_the_log_scale_is_positive_and_reciprocal():
    top, bottom = np.array([1.0, 0.1, 3.0]), np.array([2.0, 1.0, 1.0])
    e, inverse = s.ratio(top, bottom, log=True), s.ratio(bottom, top, log=True)
    assert s.ratio(top, bottom).low < 0 < e.low < e.value < e.high
    assert e.value * e.value == pytest.approx(e.low * e.high)
    assert (inverse.low, inverse.high) == (pytest.approx(1 / e.high), pytest.approx(1 / e.low))


def test_exponential_turns_nats_into_perplexity():
    nats = s.mean([1.0, 2.0, 3.0])
    e = s.exponential(nats)
    assert (e.value, e.low, e.high) == (
        pytest.approx(math.exp(2)),
        pytest.approx(math.exp(nats.low)),
        pytest.approx(math.exp(nats.high)),
    )
    assert e.stderr == pytest.approx(math.exp(2) * nats.stderr)
    assert s.exponential(s.mean([3.0]), base=2).value == pytest.approx(8.0) and s.exponential(s.mean([3.0])).low is None


def test_scaled_changes_the_unit():
    e = s.scaled(s.mean([1.0, 2.0, 3.0]), 1 / math.log(2))
    assert e.value == pytest.approx(2 / math.log(2)) and e.high - e.value == pytest.approx(
        s.mean([1, 2, 3]).high / math.log(2) - e.value
    )


def test_win_rate_without_ties_is_wilson():
    e, w = s.win_rate([1, 1, 1, 0, 1]), s.wilson(4, 5)
    assert (e.value, e.low, e.high, e.method) == (0.8, pytest.approx(w.low), pytest.approx(w.high), "wilson")
    assert s.win_rate([1] * 20).low == pytest.approx(s.wilson(20, 20).low)


def test_ties_narrow_the_interval_but_never_to_a_point():
    with_ties, without = s.win_rate([1] * 30 + [0.5] * 40 + [0] * 30), s.win_rate([1] * 50 + [0] * 50)
    assert with_ties.value == without.value == 0.5
    assert with_ties.high < without.high and with_ties.low > without.low
    all_ties = s.win_rate([0.5] * 20)
    assert all_ties.low < 0.45 and all_ties.high > 0.55


def test_clustered_outcomes_count_their_clusters():
    flags = np.array([1, 0, 1, 1, 0, 1, 1, 0, 0, 1])
    alone = s.proportion(flags)
    copied = s.proportion(np.repeat(flags, 6), np.repeat(np.arange(10), 6).tolist())
    assert copied.n == 10 and copied.method == "wilson, clustered"
    few = 2.262157 / 1.959964  # t quantile of 9 degrees over the normal
    assert copied.high - copied.low == pytest.approx((alone.high - alone.low) * few, rel=0.08)
    assert s.proportion(flags, list(range(10))) == alone
    none = s.proportion([0] * 60, list(range(20)) * 3)
    assert (none.low, none.high) == (0.0, pytest.approx(0.16113, abs=5e-6))  # as 0 of 20, not of 60


@pytest.mark.parametrize("clusters", [None, [0, 0, 1, 2, 2, 3]])
def test_score_mean_is_the_win_rate_of_what_is_one(clusters):
    votes = [1, 0.5, 0, 1, 1, 0.5]
    score, rate = s.score_mean(votes, clusters), s.win_rate(votes, clusters)
    assert (score.n, score.value, score.stderr) == (rate.n, rate.value, rate.stderr)
    assert (score.low, score.high) == (rate.low, rate.high)


def test_score_mean_covers_with_quarters_and_has_a_width():
    draw, shares = rng("score mean"), [0.02, 0.03, 0.1, 0.15, 0.7]
    levels = np.array([0, 0.25, 0.5, 0.75, 1])
    found = [s.score_mean(draw.choice(levels, 30, p=shares)) for _ in range(2000)]
    assert 0.93 < np.mean([e.low <= levels @ shares <= e.high for e in found]) < 0.97
    assert s.score_mean([0.75] * 12).low < 0.7 < 0.8 < s.score_mean([0.75] * 12).high
    with pytest.raises(ValueError, match="not all in"):
        s.score_mean([0.5, 1.5])


def test_bootstrap_is_a_function_of_its_seed_and_is_chunked_evenly(monkeypatch):
    x = rng("boot").normal(size=50)
    kwargs = {"seed": 3, "purpose": "test", "resamples": 400}
    once = s.bootstrap(lambda a: a.mean(1), x, **kwargs)
    assert once == s.bootstrap(lambda a: a.mean(1), x, **kwargs)
    assert once.low != s.bootstrap(lambda a: a.mean(1), x, **(kwargs | {"seed": 4})).low
    monkeypatch.setattr("evaluation.statistics.resampling.CHUNK_CELLS", 700)
    assert s.bootstrap(lambda a: a.mean(1), x, **kwargs) == once
    assert once.stderr == pytest.approx(s.mean(x).stderr, rel=0.15)


def test_bootstrap_refuses_a_statistic_that_is_mostly_undefined():
    with pytest.raises(ValueError, match="undefined on"):
        s.bootstrap(
            lambda a: np.where(a.sum(1) > 2, np.nan, 0.0), np.ones(3) - [1, 0, 0], seed=0, purpose="t", resamples=50
        )


def test_bootstrap_of_one_item_claims_no_interval():
    assert s.bootstrap(lambda a: a.mean(1), [2.0], seed=0, purpose="t").low is None


def test_bias_corrected_bootstrap_undoes_the_shift_of_resampling():
    """A squared mean is shifted upwards by resampling as it was by sampling; the plain percentiles keep that twice."""
    g, hits = rng("bias"), {False: 0, True: 0}
    for run in range(300):
        x = g.normal(0, 1, (40, 8)) + 0.25
        draw = {"seed": run, "purpose": "bias", "resamples": 400}
        for corrected in hits:
            e = s.bootstrap(lambda a: (a.mean(1) ** 2).sum(1), x, bias_corrected=corrected, **draw)
            hits[corrected] += e.low <= 8 * 0.25**2 <= e.high
    assert hits[False] < 0.75 * 300 < 0.85 * 300 < hits[True] and "bias-corrected" in e.method
