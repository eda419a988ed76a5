"""Intervals of the image metrics at the edges; that they cover is tested with those of all metrics (test_coverage.py)."""

import numpy as np
import pytest

from evaluation.images.intervals import frechet_estimate, inception_estimate, kernel_estimate
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


def test_equal_and_constant_sets_say_why_they_have_no_interval():
    x = draw("equal", 60, 4)
    same = frechet_estimate(x, x, 0)
    assert 0 <= same.value < 1e-9 and same.low is None and "same mean and covariance" in same.method
    still = frechet_estimate(np.zeros((20, 3)), np.ones((20, 3)), 0)
    assert still.value == pytest.approx(3.0) and "same features" in still.method


def test_blocks_of_the_score_are_named():
    assert inception_estimate(draw("score", 100, 4), 1, 0).method == "jackknife over 20 blocks, log scale"
    assert kernel_estimate(draw("a", 30, 4), draw("b", 30, 4)).method == "delete-one jackknife, normal"
