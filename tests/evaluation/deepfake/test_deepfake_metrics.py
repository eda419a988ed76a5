"""Known answers of the detector's metrics, and its interval."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation.deepfake.metrics import (
    average_precision,
    balanced_accuracy,
    correct_at,
    equal_error_rate,
    true_positive_rate_at,
)
from evaluation.statistics import auc_difference, auc_estimate, roc_auc
from evaluation.statistics.roc import auc_interval, placements, roc_curve
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


def test_delong_s_error_is_the_one_of_its_definition():
    """Brute force over all pairs of a generated and a real image; coverage is tested with that of all metrics."""
    labels, scores = binormal(60, 0.8, seed=3)
    scores = np.round(scores, 1)
    real, generated = scores[labels == 0], scores[labels == 1]
    psi = np.array([[(x > y) + 0.5 * (x == y) for y in real] for x in generated])
    above, below = placements(labels, scores)
    assert above == pytest.approx(psi.mean(1)) and below == pytest.approx(psi.mean(0))
    found = auc_estimate(labels, scores)
    variance = psi.mean(1).var(ddof=1) / 60 + psi.mean(0).var(ddof=1) / 60
    assert (found.value, found.stderr, found.n) == (pytest.approx(psi.mean()), pytest.approx(variance**0.5), 120)
    assert found.method == "DeLong, logit" and 0 < found.low < found.value < found.high < 1


def test_separated_classes_keep_an_interval():
    found = auc_estimate([0] * 20 + [1] * 20, np.arange(40))
    assert (found.low, found.high) == pytest.approx(auc_interval(1.0, 20, 20))
    assert found.value == 1.0 and "Newcombe" in found.method and found.stderr is None
    assert auc_estimate([0, 1, 1], [0.1, 0.2, 0.3]).low is not None
    assert auc_estimate(LABELS, np.zeros(8)).method.startswith("Newcombe")


def test_two_detectors_on_the_same_images():
    labels, ours = binormal(200, 1.5, seed=1)
    theirs = ours + np.random.default_rng(2).standard_normal(400) * 0.5
    found = auc_difference(labels, ours, theirs)
    assert found.estimate.value == pytest.approx(roc_auc(labels, ours) - roc_auc(labels, theirs))
    apart = [auc_estimate(labels, x).stderr for x in (ours, theirs)]
    assert found.estimate.stderr < 0.6 * np.hypot(*apart)  # the same images: most of the chance is shared
    same = auc_difference(labels, ours, 3 * ours + 1)
    assert (same.estimate.value, same.p_value) == (0.0, 1.0)


def test_both_kinds_count_alike_in_the_accuracy():
    found = balanced_accuracy([0] * 90 + [1] * 10, [0.1] * 90 + [0.9] * 4 + [0.2] * 6, 0.5)
    assert (
        found.value == pytest.approx(0.7) and found.n == 100
    )  # all of the real and four tenths of the others: .94 plain
    assert found.low < 0.7 < found.high and found.stderr == pytest.approx(np.sqrt(0.4 * 0.6 / 10) / 2, rel=0.1)
    perfect = balanced_accuracy([0] * 20 + [1] * 20, [0.1] * 20 + [0.9] * 20, 0.5)
    assert perfect.value == perfect.high == 1.0 and 0.85 < perfect.low < 0.95


def test_the_interval_of_the_accuracy_covers():
    draw, held = np.random.default_rng(4), 0
    for _ in range(600):
        p, q = draw.uniform(0.3, 1, 2)
        scores = np.concatenate([draw.random(60) > p, draw.random(25) < q]).astype(float)
        found = balanced_accuracy(np.repeat([0, 1], [60, 25]), scores, 0.5)
        held += found.low <= (p + q) / 2 <= found.high
    assert 0.93 <= held / 600 <= 0.975


def test_bad_input_is_named():
    with pytest.raises(UserError, match="both 0"):
        roc_auc([1, 1], [0.2, 0.3])
    with pytest.raises(UserError, match="score 1 is NaN"):
        roc_auc([0, 1], [0.2, np.nan])
    with pytest.raises(UserError, match="one label and one score"):
        roc_auc([0, 1, 1], [0.2, 0.3])


def test_detectors_whose_placements_differ_by_the_same_claim_nothing():
    labels = [0, 0, 0, 1, 1, 1]
    right, wrong = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0.9, 0.8, 0.7, 0.3, 0.2, 0.1]
    found = auc_difference(labels, right, wrong)
    assert (found.estimate.value, found.estimate.low, found.p_value) == (1.0, None, None)
    assert auc_difference(labels, right, right).p_value == 1.0


def test_the_protocol_says_which_key_was_looked_for():
    from types import SimpleNamespace

    from evaluation.suites.deepfake import DeepfakeConfig
    from evaluation.suites.deepfake_results import _protocol

    class Images(SimpleNamespace):
        def __len__(self):
            return len(self.images)

    real = Images(images=np.zeros((2, 3, 8, 8), dtype=np.uint8), sha256="a" * 64, compression=["PNG"])
    one, other, none = (
        _protocol(DeepfakeConfig(output_dir="o", generators={"g": "x"}, watermark=key), real).settings
        for key in ("mine", "theirs", "")
    )
    assert one["watermark_key_sha256"] != other["watermark_key_sha256"] and "watermark_key_sha256" not in none
    assert "mine" not in str(one)
