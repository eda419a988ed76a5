"""Sums of absolute values of noisy means: against normal theory, brute force, and where the sum is 0."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from evaluation.statistics.absolute_sum import absolute_sum, nearest


def test_far_from_zero_it_is_the_interval_of_a_sum():
    """Signs are certain, so that the sum is that of the sizes, with a normal error and no bias."""
    covariance = np.array([[0.04, 0.01], [0.01, 0.09]])
    found = absolute_sum(np.array([5.0, -7.0]), covariance, 99, seed=0)
    error = np.sqrt(0.04 + 0.09 - 2 * 0.01)  # of x - y
    assert found.value == pytest.approx(12.0, abs=0.01) and found.n == 99
    assert (found.low, found.high) == (
        pytest.approx(12 - 1.96 * error, abs=0.05),
        pytest.approx(12 + 1.96 * error, abs=0.05),
    )
    assert found.stderr == pytest.approx(error, rel=0.06)


def test_one_mean_is_a_folded_normal():
    """|N(m, 1)| <= 2 with probability .025, .5 and .975, solved with scipy."""
    found = absolute_sum(np.array([2.0]), np.eye(1), 9, seed=0)
    for limit, share in ((found.high, 0.025), (found.value, 0.5)):
        exact = scipy.optimize.brentq(lambda m: scipy.stats.foldnorm.cdf(2.0, m) - share, 0, 9)
        assert limit == pytest.approx(exact, abs=0.06)
    assert scipy.stats.foldnorm.cdf(2.0, 0) < 0.975 and found.low == 0


def test_noise_alone_gives_zero():
    draw = np.random.default_rng(0)
    values = [absolute_sum(draw.normal(0, 1, 10), np.eye(10), 9, seed=0) for _ in range(40)]
    assert np.mean([e.low == 0 for e in values]) > 0.9 and np.mean([e.value == 0 for e in values]) > 0.3
    assert all(0 <= e.low <= e.value <= e.high for e in values)
    plain = absolute_sum(np.zeros(3), np.eye(3), 9, seed=0)
    assert (plain.value, plain.low, plain.high) == (0, 0, 0)


def test_the_estimate_is_as_often_too_small_as_too_large():
    draw, truth = np.random.default_rng(1), np.array([0.0, 0.5, -1.0, 2.0])
    found = [absolute_sum(truth + draw.normal(0, 0.7, 4), 0.49 * np.eye(4), 9, seed=0) for _ in range(300)]
    too_large = np.mean([e.value > 3.5 for e in found])
    assert 0.4 < too_large < 0.6
    assert np.mean([np.abs(truth + draw.normal(0, 0.7, 4)).sum() > 3.5 for _ in range(3000)]) > 0.6  # the plain one


def test_nearest_means_of_a_sum_are_found_by_brute_force():
    measured, variance = np.array([0.3, -1.0, 0.05]), np.array([0.2, 0.5, 0.1])
    pulled = nearest(measured, variance, 0.8)
    total = np.abs(pulled).sum()
    assert pulled[2] == 0 and pulled[1] < 0

    def distance(m):
        return ((m - measured) ** 2 / variance).sum()

    draw = np.random.default_rng(2)
    others = draw.dirichlet([1, 1, 1], 20_000) * total * np.sign(draw.normal(size=(20_000, 3)))
    assert distance(pulled) <= min(distance(m) for m in others) + 1e-9
    assert np.abs(nearest(measured, variance, -1.0)).sum() == pytest.approx(1.35 + 0.8)


def test_without_spread_there_is_no_interval():
    found = absolute_sum(np.array([0.5]), np.zeros((1, 1)), 9, seed=0)
    assert found.value == 0.5 and found.low is None and "no spread" in found.method


def test_scale_and_seed():
    means, covariance = np.array([0.3, -0.1, 0.2]), 0.02 * np.eye(3) + 0.005
    one, same = (absolute_sum(means, covariance, 9, seed=4) for _ in range(2))
    ten = absolute_sum(10 * means, 100 * covariance, 9, seed=4)
    assert one == same and ten.value == pytest.approx(10 * one.value, rel=1e-6)
    assert (ten.low, ten.high) == (pytest.approx(10 * one.low, rel=1e-6), pytest.approx(10 * one.high, rel=1e-6))
