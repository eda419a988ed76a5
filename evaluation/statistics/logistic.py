"""Logistic regression with Firth's penalty: finite where one side always wins. Pure.

Letters: N rows, K features. A row may stand for several trials: outcomes are then sums over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from evaluation.statistics.estimate import as_vector
from evaluation.statistics.intervals import cluster_codes

Array = NDArray[np.float64]

MAX_STEPS = 100
TOLERANCE = 1e-10


@dataclass(frozen=True)
class LogisticFit:
    """Coefficients (k,) of a logistic regression and their covariance (k, k), the inverse information."""

    coefficients: Array
    covariance: Array


def firth_logistic(
    features: ArrayLike, outcomes: ArrayLike, trials: ArrayLike | None = None, penalised: bool = True
) -> LogisticFit:
    """Logistic regression of outcomes (n,) on features (n, k) with Firth's (1993) penalty.

    outcomes lie in [0, 1], or in [0, trials] where a row stands for several `trials`. The penalty, the Jeffreys prior,
    keeps the estimates finite when one side wins always (Heinze and Schemper 2002) and removes their first-order bias;
    without it (`penalised` False) they are those of maximum likelihood, which the caller must know to exist. Newton
    steps with halving. ValueError when the features are collinear.
    """
    x, y = np.asarray(features, dtype=np.float64), as_vector(outcomes, "outcomes")
    m = np.ones_like(y) if trials is None else as_vector(trials, "trials")
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise ValueError("firth_logistic: the features are collinear, so their effects cannot be told apart")
    beta = np.zeros(x.shape[1])
    for _ in range(MAX_STEPS):
        score, covariance = _score(x, y, m, beta, penalised)
        step = covariance @ score
        step *= min(1.0, 5.0 / max(1e-300, float(np.abs(step).max())))  # far from the optimum Newton overshoots
        objective = _objective(x, y, m, beta, penalised)
        while _objective(x, y, m, beta + step, penalised) < objective - 1e-12 and np.abs(step).max() > TOLERANCE:
            step /= 2
        beta = beta + step
        if np.abs(step).max() < TOLERANCE:
            break
    return LogisticFit(beta, _score(x, y, m, beta, penalised)[1])


def _score(x: Array, y: Array, m: Array, beta: Array, penalised: bool) -> tuple[Array, Array]:
    """The (penalised) score (k,) and the inverse information (k, k) at `beta`."""
    p = expit(x @ beta)
    weight = m * p * (1 - p)
    covariance = np.linalg.inv((x * weight[:, None]).T @ x)
    leverage = weight * np.einsum("ij,jk,ik->i", x, covariance, x) if penalised else 0.0
    return x.T @ (y - m * p + leverage * (0.5 - p)), covariance


def _objective(x: Array, y: Array, m: Array, beta: Array, penalised: bool) -> float:
    eta = x @ beta
    likelihood = float(y @ eta - m @ np.logaddexp(0.0, eta))
    if not penalised:
        return likelihood
    p = expit(eta)
    sign, log_determinant = np.linalg.slogdet((x * (m * p * (1 - p))[:, None]).T @ x)
    return likelihood + 0.5 * log_determinant if sign > 0 else -math.inf


def clustered_covariance(features: ArrayLike, outcomes: ArrayLike, fit: LogisticFit, groups: Sequence[object]) -> Array:
    """Covariance (k, k) of a logistic fit when rows come in groups: the sandwich of Liang and Zeger (1986)."""
    x, y = np.asarray(features, dtype=np.float64), as_vector(outcomes, "outcomes")
    scores = x * (y - expit(x @ fit.coefficients))[:, None]
    codes = cluster_codes(groups)
    sums = np.stack([np.bincount(codes, weights=column) for column in scores.T], 1)
    g = len(sums)
    return fit.covariance @ (sums.T @ sums) @ fit.covariance * (g / (g - 1))
