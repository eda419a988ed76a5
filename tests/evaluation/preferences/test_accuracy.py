import numpy as np
import pytest
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
