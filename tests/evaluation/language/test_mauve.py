import math

import numpy as np
import pytest

from evaluation.language.hidden_states import last_hidden_states
from evaluation.language.mauve import divergence_curve, halves, mauve, mauve_of_histograms, quantise
from launch.errors import UserError
from tests.evaluation import tiny


def test_histograms_with_known_areas():
    equal = np.array([0.2, 0.3, 0.5])
    assert mauve_of_histograms(equal, equal) == pytest.approx(1.0)
    # disjoint: the curve is ((1-w)^c, w^c), its area c B(c, c + 1)
    disjoint = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    for scale in (1.0, 2.0, 5.0):
        area = scale * math.gamma(scale) * math.gamma(scale + 1) / math.gamma(2 * scale + 1)
        assert mauve_of_histograms(*disjoint, scale=scale) == pytest.approx(area, rel=1e-4)


def test_half_shared_mass_by_direct_integration():
    """p = (1/2, 1/2, 0), q = (1/2, 0, 1/2): KL(q | r) = ln(1 / (1-w)) / 2, so x = (1-w)^(c/2), and y = w^(c/2)."""
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.0, 0.5])
    area = 2.5 * math.gamma(2.5) * math.gamma(3.5) / math.gamma(6)
    assert mauve_of_histograms(p, q) == pytest.approx(area, rel=1e-4)
    assert mauve_of_histograms(p, q) == pytest.approx(mauve_of_histograms(q, p), rel=1e-6)


def test_the_curve_falls_and_stays_in_the_unit_square():
    x, y = divergence_curve(np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6]))
    assert (np.diff(x) <= 1e-12).all() and (np.diff(y) >= -1e-12).all()
    assert min(x.min(), y.min()) > 0 and max(x.max(), y.max()) <= 1


def test_no_histogram_is_refused():
    with pytest.raises(ValueError, match="p is no histogram"):
        mauve_of_histograms(np.array([0.5, 0.2]), np.array([0.5, 0.5]))


def samples(shift, n=200, seed=0):
    generator = np.random.default_rng(seed)
    centres = np.eye(8)[generator.integers(0, 8, n)] * 5
    return centres + generator.normal(size=(n, 8)) * 0.3 + shift


def test_equal_features_give_one_and_more_different_ones_give_less():
    human = samples(0.0)
    assert mauve(human, human, seed=0).value == pytest.approx(1.0)
    values = [mauve(samples(shift, seed=1), human, seed=0).value for shift in (0.0, 1.0, 6.0)]
    assert values[0] > 0.8 and values[0] > values[1] > values[2] and values[2] < 0.05
    again = mauve(samples(0.0, seed=1), human, seed=0)
    assert again.value == values[0] and again.low < again.value <= again.high and again.n == 200


def test_a_missing_mode_is_seen():
    generator = np.random.default_rng(3)
    one = np.eye(8)[np.zeros(200, int)] * 5 + generator.normal(size=(200, 8)) * 0.3
    assert mauve(one, samples(0.0), seed=0).value < 0.2


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        mauve(np.full((30, 2), np.nan), np.zeros((30, 2)), 0)
    with pytest.raises(ValueError, match="give \\(n, D\\)"):
        mauve(np.zeros((30, 2)), np.zeros((30, 3)), 0)
    with pytest.raises(ValueError, match="3 texts for 5 clusters"):
        mauve(np.zeros((3, 2)), np.zeros((9, 2)), 0, clusters=5)
    constant = quantise(np.ones((30, 2)), np.ones((30, 2)), 0)
    assert [c.tolist() for c in constant] == [[30], [30]]


def test_halves_are_disjoint_and_all():
    first, second = halves(9, 0)
    assert sorted([*first, *second]) == list(range(9)) and len(first) == 4


def test_hidden_states_do_not_depend_on_the_batch():
    model, tok = tiny.language_model(), tiny.tokenizer()
    texts = ["short", "a longer text than that", "x" * 200]
    together = last_hidden_states(model, tok, texts)
    alone = np.concatenate([last_hidden_states(model, tok, [t], 1) for t in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.shape == (3, 32) and np.abs(together[0] - together[1]).max() > 0.1
    with pytest.raises(UserError, match="text 2 has no tokens"):
        last_hidden_states(model, tok, ["a", ""])
