import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from evaluation.preferences import accuracy as a
from evaluation.preferences.metrics import accuracy_metrics
from evaluation.statistics import win_rate
from launch.seeding import numpy_generator


def test_known_margins():
    margins = [1, -1, 0, 3]
    assert a.outcomes(margins, "wrong").mean() == 0.5
    assert a.outcomes(margins, "half").mean() == 0.625
    assert a.pairwise_loss(margins).value == pytest.approx(0.5920644767)
    assert a.pairwise_loss([-2000.0]).value == pytest.approx(2000.0)  # no overflow
    assert a.brier_score([0.0, 0.0]).value == 0.25


def test_accuracy_of_normal_margins_is_phi_of_their_ratio():
    margins = numpy_generator(0, "margins").normal(0.6, 1.2, 20_000)
    assert win_rate(a.outcomes(margins)).value == pytest.approx(norm.cdf(0.5), abs=0.01)


def test_pairs_of_one_prompt_are_one_unit():
    right = [1, 1, 1, 0, 0, 0]
    alone, grouped = win_rate(right), win_rate(right, list("aaabbb"))
    assert alone.method == "wilson" and win_rate(right, list("abcdef")) == alone
    assert grouped.n == 2 and grouped.high - grouped.low > alone.high - alone.low


def test_reliability_bins_hold_every_pair_once():
    margins = logit([0.52, 0.58, 0.97, 0.999]) * np.array([1, -1, 1, 1])
    bins = a.reliability_bins(margins, bins=10)
    assert [(b.n, b.accuracy) for b in bins] == [(1, 1.0), (1, 0.0), (2, 1.0)]
    assert bins[0].low == 0.5 and bins[-1].high == 1.0
    assert bins[-1].confidence == pytest.approx((0.97 + 0.999) / 2)


def test_ece_known_answer():
    margins = np.concatenate(
        [np.full(8, logit(0.9)), np.full(2, -logit(0.9)), np.full(6, logit(0.7)), np.full(4, -logit(0.7))]
    )
    found = a.calibration(margins, seed=0)
    assert found.error.value == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)  # |.8 - .9| and |.6 - .7|


def test_a_calibrated_model_is_not_accused_and_an_overconfident_one_is():
    g = numpy_generator(0, "calibrated")
    confidence = g.uniform(0.5, 1.0, 400)
    signs = np.where(g.random(400) < confidence, 1, -1)
    margins = logit(confidence) * signs
    good, bad = a.calibration(margins, seed=1), a.calibration(4 * margins, seed=1)
    assert good.p_value > 0.05 and good.error.value < 2 * good.expected
    assert bad.p_value < 0.01 and bad.error.value > 0.1
    assert bad.error.low < bad.error.value < bad.error.high
    assert good == a.calibration(margins, seed=1)


def test_the_interval_of_calibration_draws_whole_prompts():
    margins = numpy_generator(3, "clusters").normal(0.5, 2.0, 40)
    once, prompts = a.calibration(margins, seed=1), [str(i) for i in range(40)] * 5
    fivefold = a.calibration(np.tile(margins, 5), seed=1, groups=prompts).error  # the same 40 units
    assert (fivefold.value, fivefold.n) == (pytest.approx(once.error.value), 40)
    assert (fivefold.low, fivefold.high) == (pytest.approx(once.error.low), pytest.approx(once.error.high))
    assert fivefold.method == once.error.method + ", clustered"
    blind = a.calibration(np.tile(margins, 5), seed=1).error
    assert blind.high - blind.low < 0.7 * (fivefold.high - fivefold.low)


def test_every_metric_of_accuracy_knows_that_prompts_repeat():
    g = numpy_generator(4, "metrics")
    margins, lengths, prompts = g.normal(0.5, 2.0, 30), g.normal(0, 9, 30), [str(i) for i in range(30)]
    once = accuracy_metrics(margins, lengths, prompts, "half", seed=0)
    five = accuracy_metrics(np.tile(margins, 5), np.tile(lengths, 5), prompts * 5, "half", seed=0)
    for a_metric, b_metric in zip(once, five, strict=True):
        assert b_metric.n == a_metric.n
        assert b_metric.ci_high - b_metric.ci_low > 0.95 * (a_metric.ci_high - a_metric.ci_low), a_metric.name


def test_a_model_that_knows_nothing():
    zeros = np.zeros(50)
    assert win_rate(a.outcomes(zeros)).value == 0.5
    assert a.pairwise_loss(zeros).value == pytest.approx(np.log(2))
    assert a.calibration(zeros, seed=0).error.value == pytest.approx(0.0)
    assert expit(0) == 0.5
