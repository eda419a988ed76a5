"""Over-optimisation: how a reward rises, and may fall again, as a policy leaves the one it started from. Pure.

With d the square root of the KL divergence to the start, and R the reward gained since, Gao, Schulman and Hilton (2023,
"Scaling Laws for Reward Model Overoptimization") fit R(d) = d (alpha - beta d) for best-of-n sampling, and
R(d) = d (alpha - beta log d) for reinforcement learning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics import LEVEL, Estimate
from evaluation.statistics.estimate import as_vector, t_quantile

Form = Literal["quadratic", "logarithmic"]
FORMS: tuple[Form, ...] = ("quadratic", "logarithmic")


@dataclass(frozen=True)
class OveroptimisationFit:
    """R(d) = d (alpha - beta f(d)), where f(d) is d ("quadratic") or log d ("logarithmic")."""

    form: Form
    alpha: Estimate
    beta: Estimate
    residual: float
    """Root mean square of what the fit leaves, over the degrees of freedom."""

    @property
    def formula(self) -> str:
        return f"d (α − β {'d' if self.form == 'quadratic' else 'log d'})"

    @property
    def peak(self) -> float | None:
        """The d at which the reward is highest; None where it falls from the beginning or never falls."""
        alpha, beta = self.alpha.value, self.beta.value
        if beta <= 0 or (self.form == "quadratic" and alpha <= 0):
            return None
        return alpha / (2 * beta) if self.form == "quadratic" else math.exp(min(alpha / beta - 1, 700.0))


def predicted_gain(distances: ArrayLike, fit: OveroptimisationFit) -> NDArray[np.float64]:
    """R(d) of distances (n,) >= 0."""
    coefficients = np.array([fit.alpha.value, fit.beta.value])
    return _features(as_vector(distances, "distances"), fit.form) @ coefficients


def _features(d: NDArray[np.float64], form: Form) -> NDArray[np.float64]:
    """The columns that alpha and beta multiply, (n, 2); d log d is 0 at 0."""
    power = d**2 if form == "quadratic" else d * np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -power], 1)


def fit_overoptimisation(
    distances: ArrayLike, gains: ArrayLike, form: Form, level: float = LEVEL
) -> OveroptimisationFit | None:
    """Least squares of gains (n,) on distances (n,); points at distance 0 say nothing, and are left out.

    Intervals are Student's t with n - 2 degrees. Points of one training run depend on each other: the intervals are
    those of independent points, and too narrow. None with fewer than three different distances above 0.
    """
    d, y = as_vector(distances, "distances"), as_vector(gains, "gains")
    if (d < 0).any():
        raise ValueError("fit_overoptimisation: distances must not be negative; a KL below 0 counts as 0")
    d, y = d[d > 0], y[d > 0]
    if np.unique(d).size < 3:
        return None
    x, freedom = _features(d, form), d.size - 2
    if np.linalg.matrix_rank(x) < 2:
        return None
    coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
    left = y - x @ coefficients
    variance = float(left @ left) / freedom
    errors = np.sqrt(variance * np.diag(np.linalg.inv(x.T @ x)))
    quantile = t_quantile(freedom, level)
    alpha, beta = (
        Estimate(
            float(c), d.size, float(e), float(c - quantile * e), float(c + quantile * e), level, "least squares, t"
        )
        for c, e in zip(coefficients, errors, strict=True)
    )
    return OveroptimisationFit(form, alpha, beta, math.sqrt(variance))


def best_fit(distances: ArrayLike, gains: ArrayLike) -> OveroptimisationFit | None:
    """The fit of the form that leaves less; both have two coefficients, so this is a fair choice."""
    fits = [fit for form in FORMS if (fit := fit_overoptimisation(distances, gains, form)) is not None]
    return min(fits, key=lambda fit: fit.residual, default=None)
