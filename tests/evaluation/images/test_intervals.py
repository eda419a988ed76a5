"""Intervals of the image metrics: coverage by simulation, and what happens with few images."""

import numpy as np
import pytest

from evaluation.images.intervals import (
    block_ids,
    cmmd_estimate,
    extrapolated_estimate,
    frechet_estimate,
    inception_estimate,
    kernel_estimate,
    manifold_estimates,
    mind_estimate,
)
from launch.errors import UserError


def rng(seed):
    return np.random.default_rng(seed)


def coverage(estimates):
    """Share of the intervals that hold the expected value at this N, which the mean of all the draws stands for."""
    truth = np.mean([e.value for e in estimates])
    return np.mean([e.low <= truth <= e.high for e in estimates])


def test_frechet_interval_covers():
    def draw(seed):
        return frechet_estimate(
            rng(seed).standard_normal((120, 6)) * 1.4 + 0.5, rng(9999 + seed).standard_normal((150, 6)), 0
        )

    estimates = [draw(seed) for seed in range(160)]
    assert 0.90 <= coverage(estimates) <= 0.99
    assert np.mean([e.stderr for e in estimates]) == pytest.approx(np.std([e.value for e in estimates]), rel=0.2)
    assert estimates[0].method == "jackknife over 20 blocks, log scale" and estimates[0].n == 120


def test_inception_interval_covers():
    def draw(seed):
        labels = rng(seed).integers(0, 8, 200)
        return inception_estimate(rng(seed + 1).standard_normal((200, 8)) + 3 * np.eye(8)[labels], 1, 0)

    assert 0.91 <= coverage([draw(seed) for seed in range(250)]) <= 0.985


def test_kernel_interval_covers():
    def draw(seed):
        return kernel_estimate(rng(seed).standard_normal((100, 5)) + 0.6, rng(9999 + seed).standard_normal((80, 5)))

    assert 0.91 <= coverage([draw(seed) for seed in range(250)]) <= 0.985


def test_blocks_are_of_one_size_and_cut_across_the_order_of_the_files():
    ids = block_ids(200, 10, seed=0)
    assert np.bincount(ids).tolist() == [20] * 10
    assert len(set(ids[:20])) > 5  # files often come sorted by class: a block must not be one class


def test_few_images_have_fewer_blocks_or_none():
    assert frechet_estimate(rng(0).standard_normal((9, 2)), rng(1).standard_normal((30, 2)), 0).method.startswith(
        "jackknife over 4"
    )
    lone = frechet_estimate(rng(0).standard_normal((3, 2)), rng(1).standard_normal((30, 2)), 0)
    assert lone.low is None and lone.method == "none (n = 3)"


def test_equal_sets_have_a_finite_interval():
    x = rng(0).standard_normal((60, 4))
    same = frechet_estimate(x, x, 0)
    assert 0 <= same.value < 1e-9 and np.isfinite([same.low, same.high]).all()


def two_sets(seed, n=120, m=150, d=5, shift=0.5):
    return rng(seed).standard_normal((n, d)) + shift, rng(9999 + seed).standard_normal((m, d))


def test_cmmd_interval_covers():
    assert 0.91 <= coverage([cmmd_estimate(*two_sets(seed), 0.95) for seed in range(250)]) <= 0.985


def test_mind_interval_covers():
    estimates = [mind_estimate(*two_sets(seed), 0, directions=40) for seed in range(160)]
    assert 0.90 <= coverage(estimates) <= 0.99
    assert estimates[0].method == "jackknife over 20 blocks, log scale" and estimates[0].low > 0


def test_extrapolated_interval_covers_the_true_distance():
    # not only the mean of the draws: the bias is gone, so that the distance of the distributions themselves is covered
    d, shift = 5, 0.5
    estimates = [extrapolated_estimate(*two_sets(seed, d=d, shift=shift), seed) for seed in range(120)]
    truth = d * shift**2
    assert 0.89 <= np.mean([e.low <= truth <= e.high for e in estimates]) <= 0.99
    assert np.mean([e.value for e in estimates]) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("name", ["precision", "recall", "density", "coverage"])
def test_manifold_intervals_cover(name):
    estimates = [manifolds(seed)[name] for seed in range(120)]
    assert 0.89 <= coverage(estimates) <= 1.0
    spread = np.std([e.value for e in estimates])
    assert 0.8 * spread < np.mean([e.stderr for e in estimates]) < 1.6 * spread


def manifolds(seed, cache={}):
    if seed not in cache:
        cache[seed] = manifold_estimates(*two_sets(seed, 150, 150, 3, 0.8), 0)[1]
    return cache[seed]


def test_shares_at_the_ends_keep_a_width():
    far = manifold_estimates(rng(0).standard_normal((100, 4)), rng(1).standard_normal((80, 4)) + 50, 0)[1]
    assert far["precision"].value == 0 and 0.02 < far["precision"].high < 0.06  # Wilson's 0 of 100: up to 3.7%
    assert far["recall"].value == 0 and far["recall"].n == 80
    x = rng(0).standard_normal((100, 4))
    same = manifold_estimates(x, x, 0)[1]
    assert same["coverage"].value == 1 and 0.94 < same["coverage"].low < 0.98 and same["coverage"].high == 1


def test_few_images_of_the_new_metrics():
    x, y = rng(0).standard_normal((6, 2)), rng(1).standard_normal((6, 2))
    assert manifold_estimates(x, y, 0)[1]["precision"].method == "none (n = 6)"
    assert mind_estimate(x[:3], y, 0, directions=5).method == "none (n = 3)"
    with pytest.raises(UserError, match="at least 16 images in each set, not 6"):
        extrapolated_estimate(x, y, 0)
    some = extrapolated_estimate(rng(0).standard_normal((20, 2)), rng(1).standard_normal((30, 2)), 0)
    assert some.method == "jackknife over 4 blocks" and some.low < some.value < some.high
