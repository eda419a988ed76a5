import numpy as np
import pytest

from evaluation.preferences.ensemble import disagreement, scaled_margins
from evaluation.preferences.reward_metrics import ensemble_metrics
from launch.seeding import numpy_generator


def test_scales_do_not_matter():
    margins = np.array([[1.0, -2.0, 2.0], [100.0, 200.0, -200.0]])
    scaled = scaled_margins(margins)
    np.testing.assert_allclose((scaled**2).mean(1), 1)
    np.testing.assert_allclose(scaled[0], [1 / np.sqrt(3), -2 / np.sqrt(3), 2 / np.sqrt(3)])
    np.testing.assert_array_equal(scaled_margins([[0.0, 0.0], [1.0, 1.0]])[0], 0)


def test_votes_and_spread():
    found = disagreement([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [1.0, 1.0, -1.0]])
    np.testing.assert_array_equal(found.unanimous_N, [True, False, True])
    np.testing.assert_array_equal(found.together_N, [1, 1, 0])
    np.testing.assert_allclose(found.spread_N, [0, np.std([1, -1, 1], ddof=1), 0])


def test_metrics_of_an_ensemble():
    """Models that err apart: together better than each, and wrong where they are split."""
    generator = numpy_generator(0, "test")
    margins = 1.0 + generator.normal(scale=1.5, size=(5, 400))
    prompts = [str(n) for n in range(400)]
    found = {m.name: m for m in ensemble_metrics(margins, prompts)}
    assert found["ensemble_accuracy"].value > max(found["ensemble_accuracy"].extra["each"])
    assert found["ensemble_accuracy_unanimous"].value > found["ensemble_accuracy_split"].value + 0.05
    assert found["ensemble_accuracy_unanimous"].n + found["ensemble_accuracy_split"].n == 400
    assert found["ensemble_unanimous"].value == pytest.approx(found["ensemble_accuracy_unanimous"].n / 400)
    assert 0 < found["ensemble_alpha"].value < 1


def test_one_model_is_no_ensemble_and_equal_ones_agree():
    assert ensemble_metrics([[1.0, 2.0]], ["a", "b"]) == []
    found = {m.name: m for m in ensemble_metrics([[1.0, -2.0], [2.0, -4.0]], ["a", "b"])}
    assert found["ensemble_disagreement"].value == pytest.approx(0) and found["ensemble_alpha"].value == pytest.approx(
        1
    )
    assert found["ensemble_accuracy_split"].value is None and found["ensemble_accuracy_split"].note
    with pytest.raises(ValueError, match="at least two models"):
        scaled_margins([[1.0]])


def test_disagreement_knows_that_prompts_repeat():
    margins = numpy_generator(1, "repeated").normal(size=(3, 20))
    prompts = [str(n) for n in range(20)]
    once, copied = (
        {m.name: m for m in ensemble_metrics(np.tile(margins, (1, k)), prompts * k)}["ensemble_disagreement"]
        for k in (1, 5)
    )
    assert copied.n == once.n == 20 and copied.ci_high - copied.ci_low == pytest.approx(once.ci_high - once.ci_low)
