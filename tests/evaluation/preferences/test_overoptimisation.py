"""The fit of over-optimisation curves: coefficients that are known, the place of the peak, and a reference fit."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from evaluation.preferences.overoptimisation import FORMS, best_fit, fit_overoptimisation, predicted_gain

SHAPES = {
    "quadratic": lambda d, a, b: d * (a - b * d),
    "logarithmic": lambda d, a, b: d * (a - b * np.log(np.where(d > 0, d, 1.0))),
}
D = np.array([0.0, 0.3, 0.8, 1.1, 1.9, 2.6, 4.0])


@given(st.floats(-3, 3), st.floats(-2, 2), st.sampled_from(FORMS))
def test_exact_points_give_their_coefficients(alpha, beta, form):
    fit = fit_overoptimisation(D, SHAPES[form](D, alpha, beta), form)
    assert (fit.alpha.value, fit.beta.value) == pytest.approx((alpha, beta), abs=1e-9)
    assert fit.residual == pytest.approx(0, abs=1e-9) and fit.alpha.n == 6
    assert predicted_gain(D, fit) == pytest.approx(SHAPES[form](D, alpha, beta), abs=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_noisy_points_agree_with_scipy(form):
    y = SHAPES[form](D, 1.0, 0.3) + np.array([9.0, 0.1, -0.05, 0.2, -0.1, 0.05, -0.15])  # the one at 0 does not count
    fit = fit_overoptimisation(D, y, form)
    values, covariance = curve_fit(SHAPES[form], D[1:], y[1:])
    assert (fit.alpha.value, fit.beta.value) == pytest.approx(tuple(values), rel=1e-5)
    assert (fit.alpha.stderr, fit.beta.stderr) == pytest.approx(tuple(np.sqrt(np.diag(covariance))), rel=1e-4)
    assert fit.beta.low < fit.beta.value < fit.beta.high


@pytest.mark.parametrize("form", FORMS)
def test_the_peak_is_where_the_fitted_reward_is_highest(form):
    fit = fit_overoptimisation(D, SHAPES[form](D, 1.2, 0.4), form)
    grid = np.linspace(1e-3, 20, 200_001)
    assert fit.peak == pytest.approx(grid[predicted_gain(grid, fit).argmax()], abs=1e-3)
    assert fit_overoptimisation(D, SHAPES[form](D, 1.2, -0.4), form).peak is None
    assert fit_overoptimisation(D, SHAPES["quadratic"](D, -1.0, 0.4), "quadratic").peak is None
    assert math.isfinite(fit_overoptimisation(D, SHAPES["logarithmic"](D, 1.0, 1e-6), "logarithmic").peak)


def test_the_form_that_leaves_less_is_taken():
    for form in FORMS:
        assert best_fit(D, SHAPES[form](D, 1.0, 0.3)).form == form


def test_too_few_points():
    assert best_fit([0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 1.1, 2.0]) is None
    with pytest.raises(ValueError, match="must not be negative"):
        fit_overoptimisation([-1.0, 1.0, 2.0], [0.0, 1.0, 2.0], "quadratic")
