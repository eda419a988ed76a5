import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evaluation.preferences.best_of_n import best_of_n, curve_points, kl_bound, selection_weights
from evaluation.preferences.reward_metrics import best_of_n_metrics
from launch.seeding import numpy_generator


def by_brute_force(proxy, judged, n):
    """Over all draws of n, each sample of those with the highest proxy score being chosen as often."""
    found = []
    for draw in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in draw)
        found.append(np.mean([judged[i] for i in draw if proxy[i] == top]))
    return np.mean(found)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=7), st.data())
def test_all_draws_are_averaged(samples, data):
    n = data.draw(st.integers(1, len(samples)))
    proxy, judged = zip(*samples, strict=True)
    if len(set(proxy)) == len(proxy):
        assert best_of_n(proxy, judged, n) == pytest.approx(by_brute_force(proxy, judged, n), abs=1e-9)
    assert best_of_n(proxy, proxy, n) == pytest.approx(by_brute_force(proxy, proxy, n), abs=1e-9)


def test_equal_proxy_scores_do_not_depend_on_the_order():
    assert best_of_n([1, 1, 1], [0, 3, 6], 2) == pytest.approx(3)
    assert best_of_n([1, 1, 0], [0, 4, 9], 3) == pytest.approx(2)
    assert best_of_n([0, 1, 1], [9, 4, 0], 2) == pytest.approx(by_brute_force([0, 1, 1], [9, 4, 0], 2))


@given(st.integers(1, 200), st.data())
def test_weights_are_probabilities(samples, data):
    n = data.draw(st.integers(1, samples))
    weights = selection_weights(samples, n)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    expected = [math.comb(k, n - 1) / math.comb(samples, n) for k in range(samples)]
    np.testing.assert_allclose(weights, expected, atol=1e-12)


@pytest.mark.parametrize(("n", "expected"), [(2, 0.5642), (4, 1.0294), (16, 1.7660)])
def test_the_best_of_n_normal_rewards(n, expected):
    grid = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    assert best_of_n(grid, grid, n) == pytest.approx(expected, abs=2e-3)


def test_the_estimator_is_unbiased_where_one_draw_is_noisy():
    """Mean over many prompts of 8 samples: as the best of 4 fresh samples, with less spread."""
    generator = numpy_generator(0, "test")
    rewards = generator.normal(size=(4000, 8))
    judged = rewards * 0.5 + generator.normal(size=rewards.shape)
    values = [best_of_n(r, j, 4) for r, j in zip(rewards, judged, strict=True)]
    fresh = judged[np.arange(4000), rewards[:, :4].argmax(1)]
    assert np.mean(values) == pytest.approx(0.5 * 1.0294, abs=0.03)
    assert np.std(values) < 0.85 * np.std(fresh)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6), st.integers(1, 8))
def test_the_bound_on_the_kl_holds_for_discrete_policies(counts, n):
    """Outcomes with probabilities p, ranked: best-of-n has F(k)^n - F(k - 1)^n."""
    p = np.array(counts) / sum(counts)
    ends = np.cumsum(p).clip(max=1.0)
    best = ends**n - np.concatenate([[0], ends[:-1]]) ** n
    kl = float((best * np.log(np.where(best > 0, best, 1) / p)).sum())
    assert kl <= kl_bound(n) + 1e-9


def test_the_bound_is_reached_by_fine_policies():
    ends = np.arange(1, 200_001) / 200_000
    best = ends**4 - (ends - 1 / 200_000) ** 4
    assert float((best * np.log(best * 200_000)).sum()) == pytest.approx(kl_bound(4), abs=1e-4)
    assert kl_bound(1) == 0 and kl_bound(16) == pytest.approx(math.log(16) - 15 / 16)


def test_where_the_curve_is_computed():
    assert curve_points(1) == [1] and curve_points(8) == [1, 2, 4, 8] and curve_points(12) == [1, 2, 4, 8, 12]


def test_metrics_of_the_curve():
    generator = numpy_generator(1, "test")
    proxy = [generator.normal(size=6) for _ in range(50)]
    judged = [p + generator.normal(size=6) for p in proxy]
    found = {m.name: m for m in best_of_n_metrics(proxy, judged, proxy_is_judge=False)}
    assert list(found) == ["best_of_1", "best_of_2", "best_of_4", "best_of_6"]
    assert found["best_of_1"].value == pytest.approx(np.mean(judged)) and found["best_of_1"].n == 50
    assert found["best_of_4"].comparison.difference == pytest.approx(
        found["best_of_4"].value - found["best_of_1"].value
    )
    assert found["best_of_4"].extra["kl_bound"] == pytest.approx(math.log(4) - 0.75)
    assert found["best_of_4"].comparison.ci_low > 0 and found["best_of_1"].comparison is None
