"""Known answers of the Inception Score."""

import numpy as np
import pytest

from evaluation.images.score import inception_score, shuffled
from launch.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


def one_hot_logits(labels, classes=10):
    return np.where(np.arange(classes)[None] == np.asarray(labels)[:, None], 1000.0, 0.0)


def test_inception_score_of_constant_logits_is_one():
    assert inception_score(np.full((50, 7), 3.0)) == pytest.approx([1.0], abs=1e-12)


def test_inception_score_of_balanced_certain_classes_is_the_number_of_classes():
    assert inception_score(one_hot_logits(np.arange(100) % 10)) == pytest.approx([10.0], abs=1e-9)


def test_inception_score_known_value():
    p = np.full((10, 10), 0.1 / 9)
    np.fill_diagonal(p, 0.9)
    closed_form = np.exp(0.9 * np.log(9) + 0.1 * np.log(0.1 / 9 * 10))
    assert closed_form == pytest.approx(5.79954613, abs=1e-8)
    assert inception_score(np.log(np.tile(p, (5, 1)))) == pytest.approx([closed_form], rel=1e-12)


def test_inception_score_depends_on_the_order_when_split():
    labels = np.repeat(np.arange(10), 100)
    assert inception_score(one_hot_logits(labels), splits=10) == pytest.approx(np.ones(10))
    order = shuffled(1000, seed=0)
    assert sorted(order) == list(range(1000))
    split = inception_score(one_hot_logits(labels[order]), splits=10)
    assert 9.2 < split.mean() < 9.8  # not 10: each split of 100 is unbalanced by chance


def test_inception_score_survives_logits_that_overflow_a_float32_exponential():
    assert np.isfinite(inception_score(rng().standard_normal((30, 5)) * 1e4)).all()


def test_inception_score_stays_between_one_and_the_number_of_classes():
    for seed in range(20):
        value = inception_score(rng(seed).standard_normal((30, 6)) * 10 ** rng(seed).uniform(-2, 3), splits=3)
        assert (value >= 1 - 1e-12).all() and (value <= 6 + 1e-12).all()


def test_bad_input_is_named():
    with pytest.raises(UserError, match="splits is 3"):
        inception_score(np.zeros((2, 4)), splits=3)
    with pytest.raises(UserError, match="logits: row 1 holds NaN"):
        inception_score([[0.0, 1.0], [np.nan, 1.0]])
