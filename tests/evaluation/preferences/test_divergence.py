import numpy as np
import pytest

from evaluation.preferences.divergence import divergences, sequence_divergence
from launch.seeding import numpy_generator


def test_known_answer():
    k1, k3 = sequence_divergence(np.log([0.5, 0.2]), np.log([0.25, 0.4]))
    assert k1 == pytest.approx(np.log(2) - np.log(2))
    assert k3 == pytest.approx((0.5 - 1 + np.log(2)) + (2 - 1 - np.log(2)))
    assert sequence_divergence([], []) == (0.0, 0.0)
    assert sequence_divergence([-1.0], [-1.0]) == (0.0, 0.0)


def test_both_estimate_the_true_divergence():
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.3, 0.3, 0.4])
    exact = float((p * np.log(p / q)).sum())
    draws = numpy_generator(0, "kl").choice(3, p=p, size=(4000, 5))
    k1, k3 = divergences(list(np.log(p)[draws]), list(np.log(q)[draws]))
    for estimate in (k1, k3):
        assert estimate.mean() == pytest.approx(5 * exact, abs=4 * estimate.std() / np.sqrt(4000))
    assert (k3 >= 0).all() and (k1 < 0).any() and k3.std() < k1.std()


def test_different_tokens_are_refused():
    with pytest.raises(ValueError, match="same tokens"):
        sequence_divergence([-1.0, -2.0], [-1.0])
