"""Intervals of the image metrics at the edges; that they cover is tested with those of all metrics (test_coverage.py)."""

import numpy as np
import pytest

from evaluation.images.intervals import (
    cmmd_estimate,
    extrapolated_estimate,
    frechet_estimate,
    inception_estimate,
    kernel_estimate,
    manifold_estimates,
    mind_estimate,
)
from launch.errors import UserError
from launch.seeding import numpy_generator


def draw(name, *shape):
    return numpy_generator(10, name).standard_normal(shape)


def test_the_stated_error_is_the_scatter_also_for_equal_sets():
    """For equal distributions a jackknife states 1.4 times the scatter: the second-order part is counted twice."""
    for shift in (0.0, 0.6):
        found = [
            frechet_estimate(draw(f"x {shift} {k}", 200, 8) + shift, draw(f"y {shift} {k}", 200, 8), 0)
            for k in range(150)
        ]
        scatter = np.std([e.value for e in found])
        assert np.mean([e.stderr for e in found]) == pytest.approx(scatter, rel=0.15)
    assert found[0].method == "delta, influence function, log scale" and found[0].n == 200


def test_few_images_have_no_interval_and_say_so():
    lone = frechet_estimate(draw("few", 5, 2), draw("few real", 30, 2), 0)
    assert lone.low is None and lone.method == "none (n = 5)" and lone.value > 0
    assert frechet_estimate(draw("nine", 9, 2), draw("few real", 30, 2), 0).low is not None
    assert inception_estimate(draw("few", 3, 4), 1, 0).method == "none (n = 3)"
    x, y = draw("six", 6, 2), draw("six real", 6, 2)
    assert manifold_estimates(x, y, 0)[1]["precision"].method == "none (n = 6)"
    assert mind_estimate(x[:3], y, 0, directions=5).method == "none (n = 3)"
    with pytest.raises(UserError, match="at least 16 images in each set, not 6"):
        extrapolated_estimate(x, y, 0)
    some = extrapolated_estimate(draw("twenty", 20, 2), draw("few real", 30, 2), 0)[1]
    assert some.method == "jackknife over 4 blocks" and some.low < some.value < some.high


def test_equal_and_constant_sets_say_why_they_have_no_interval():
    x = draw("equal", 60, 4)
    same = frechet_estimate(x, x, 0)
    assert 0 <= same.value < 1e-9 and same.low is None and "same mean and covariance" in same.method
    still = frechet_estimate(np.zeros((20, 3)), np.ones((20, 3)), 0)
    assert still.value == pytest.approx(3.0) and "same features" in still.method


def test_methods_are_named():
    x, y = draw("a", 100, 4), draw("b", 80, 4) + 0.3
    assert inception_estimate(x, 1, 0).method == "jackknife over 20 blocks, log scale"
    for estimate in (kernel_estimate(x, y), cmmd_estimate(x, y)):
        assert estimate.method == "variance of the U-statistic, normal" and estimate.n == 100
    assert mind_estimate(x, y, 0, directions=5).method == "jackknife over 20 blocks, log scale"
    line, infinite = extrapolated_estimate(x, y, 0)
    assert infinite.method == "jackknife over 10 blocks" and infinite.value == line.at_infinity
    found = manifold_estimates(x, y, 0)[1]
    assert {e.method for name, e in found.items() if name != "density"} == {
        "wilson, effective n by jackknife over 20 blocks"
    }
    assert found["density"].method == "jackknife over 20 blocks, log scale"


def test_features_of_any_length_give_one_cmmd():
    x, y = draw("length", 30, 4), draw("length real", 40, 4) + 0.5
    one, other = cmmd_estimate(x, y), cmmd_estimate(3 * x, y / 7)
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


@pytest.mark.parametrize("name", ["precision", "recall", "density", "coverage"])
def test_the_stated_error_of_a_share_is_its_scatter(name):
    found = [manifold_of_draw(k)[name] for k in range(120)]
    spread = np.std([e.value for e in found])
    assert 0.8 * spread < np.mean([e.stderr for e in found]) < 1.6 * spread


def manifold_of_draw(number, known={}):
    if number not in known:
        x, y = draw(f"manifold {number}", 150, 3) + 0.8, draw(f"manifold real {number}", 150, 3)
        known[number] = manifold_estimates(x, y, 0)[1]
    return known[number]


def test_shares_at_the_ends_keep_a_width():
    x = draw("ends", 100, 4)
    far = manifold_estimates(x, draw("ends real", 80, 4) + 50, 0)[1]
    assert far["precision"].value == 0 and 0.02 < far["precision"].high < 0.06  # Wilson's 0 of 100: up to 3.7%
    assert far["recall"].value == 0 and far["recall"].n == 80
    same = manifold_estimates(x, x, 0)[1]
    assert same["coverage"].value == 1 and 0.94 < same["coverage"].low < 0.98 and same["coverage"].high == 1
