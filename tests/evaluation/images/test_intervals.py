"""Intervals of the image metrics: coverage by simulation, and what happens with few images."""

import numpy as np
import pytest

from evaluation.images.intervals import block_ids, frechet_estimate, inception_estimate, kernel_estimate


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
