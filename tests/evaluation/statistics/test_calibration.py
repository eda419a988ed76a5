import numpy as np
import pytest
from scipy.special import logit

from evaluation.statistics import calibration, reliability_bins
from launch.seeding import numpy_generator


def test_reliability_bins_hold_every_pair_once():
    margins = logit([0.52, 0.58, 0.97, 0.999]) * np.array([1, -1, 1, 1])
    bins = reliability_bins(margins, bins=10)
    assert [(b.n, b.accuracy) for b in bins] == [(1, 1.0), (1, 0.0), (2, 1.0)]
    assert bins[0].low == 0.5 and bins[-1].high == 1.0
    assert bins[-1].confidence == pytest.approx((0.97 + 0.999) / 2)


def test_ece_known_answer():
    margins = np.concatenate(
        [np.full(8, logit(0.9)), np.full(2, -logit(0.9)), np.full(6, logit(0.7)), np.full(4, -logit(0.7))]
    )
    found = calibration(margins, seed=0)
    assert found.plug_in == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)  # |.8 - .9| and |.6 - .7|
    assert found.error.value < found.plug_in and found.error.low == 0  # 20 pairs: chance alone may give it


def test_a_calibrated_model_is_not_accused_and_an_overconfident_one_is():
    g = numpy_generator(0, "calibrated")
    confidence = g.uniform(0.5, 1.0, 400)
    signs = np.where(g.random(400) < confidence, 1, -1)
    margins = logit(confidence) * signs
    good, bad = calibration(margins, seed=1), calibration(4 * margins, seed=1)
    assert good.p_value > 0.05 and good.plug_in < 2 * good.expected
    assert good.error.value < good.plug_in / 2 and good.error.low == 0
    assert bad.p_value < 0.01 and bad.error.value > 0.1
    assert 0 < bad.error.low < bad.error.value < bad.error.high
    assert good == calibration(margins, seed=1)


def test_the_interval_of_calibration_draws_whole_prompts():
    margins = numpy_generator(3, "clusters").normal(0.5, 2.0, 40)
    once, prompts = calibration(margins, seed=1), [str(i) for i in range(40)] * 5
    fivefold = calibration(np.tile(margins, 5), seed=1, groups=prompts).error  # the same 40 units
    assert (fivefold.value, fivefold.n) == (pytest.approx(once.error.value), 40)
    assert (fivefold.low, fivefold.high) == (pytest.approx(once.error.low), pytest.approx(once.error.high))
    assert fivefold.method == once.error.method + ", clustered"
    blind = calibration(np.tile(margins, 5), seed=1).error
    assert blind.high - blind.low < 0.7 * (fivefold.high - fivefold.low)


def test_a_model_that_knows_nothing_is_calibrated():
    assert calibration(np.zeros(50), seed=0).error.value == pytest.approx(0.0)
