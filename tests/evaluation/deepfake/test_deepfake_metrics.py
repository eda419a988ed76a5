"""Known answers of the detector's metrics, and the coverage of the interval."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation.deepfake.metrics import (
    auc_interval,
    average_precision,
    correct_at,
    equal_error_rate,
    roc_auc,
    roc_curve,
    true_positive_rate_at,
)
from launch.errors import UserError

LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
SCORES = [0.1, 0.2, 0.35, 0.8, 0.3, 0.6, 0.7, 0.9]


def binormal(n, separation, seed=0):
    draw = np.random.default_rng(seed).standard_normal(2 * n)
    labels = np.repeat([0, 1], n)
    return labels, draw + separation * labels


def test_worked_example():
    assert roc_auc(LABELS, SCORES) == 0.75
    assert average_precision(LABELS, SCORES) == pytest.approx(0.7708333333, abs=1e-9)
    assert equal_error_rate(LABELS, SCORES) == pytest.approx(0.25, abs=1e-12)
    assert correct_at(LABELS, SCORES, 0.5).mean() == 0.75


def test_inverted_and_tied_scores():
    assert roc_auc(LABELS, -np.array(SCORES)) == 0.25
    assert roc_auc(LABELS, np.zeros(8)) == 0.5
    assert equal_error_rate(LABELS, np.zeros(8)) == 0.5
    assert average_precision(LABELS, np.zeros(8)) == 0.5
    assert equal_error_rate(LABELS, LABELS) == 0.0


@pytest.mark.parametrize(("separation", "auc", "eer"), [(1.0, 0.7602499, 0.3085375), (2.0, 0.9213504, 0.1586553)])
def test_two_gaussians(separation, auc, eer):
    labels, scores = binormal(200_000, separation)
    assert roc_auc(labels, scores) == pytest.approx(auc, abs=3e-3)
    assert equal_error_rate(labels, scores) == pytest.approx(eer, abs=3e-3)
    expected = 1 - scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.99) - separation)
    assert true_positive_rate_at(labels, scores, 0.01) == pytest.approx(expected, abs=5e-3)


def test_agrees_with_scikit_learn_and_with_the_trapezoid_on_ties():
    labels, scores = binormal(300, 0.7)
    scores = np.round(scores, 1)
    assert roc_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    roc = roc_curve(labels, scores)
    assert np.trapezoid(roc.true_positive, roc.false_positive) == pytest.approx(roc_auc(labels, scores), abs=1e-12)


def test_interval_has_width_at_the_ends():
    low, high = auc_interval(1.0, 20, 20)
    assert 0.8 < low < 0.99 and high == 1.0
    assert auc_interval(0.0, 20, 20) == pytest.approx((0.0, 1 - low))
    wide, narrow = auc_interval(0.8, 20, 20), auc_interval(0.8, 2000, 2000)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]


@pytest.mark.parametrize("separation", [0.0, 1.0, 2.5])
def test_interval_covers_the_truth(separation):
    truth = scipy.stats.norm.cdf(separation / np.sqrt(2))
    covered = 0
    for seed in range(1000):
        low, high = auc_interval(roc_auc(*binormal(40, separation, seed)), 40, 40)
        covered += low <= truth <= high
    assert 0.93 <= covered / 1000 <= 0.975


def test_bad_input_is_named():
    with pytest.raises(UserError, match="both 0"):
        roc_auc([1, 1], [0.2, 0.3])
    with pytest.raises(UserError, match="score 1 is NaN"):
        roc_auc([0, 1], [0.2, np.nan])
    with pytest.raises(UserError, match="one label and one score"):
        roc_auc([0, 1, 1], [0.2, 0.3])
