"""How much each image moves a Fréchet distance: the influence function, for its standard error. Pure.

The squared distance is smooth in means and covariances, with the derivative I - T in the first covariance, where T is
the optimal transport map from the first Gaussian to the second (Takatsu 2011). So one image x of the first set moves
it by, to first order and divided by N,

    h(x) = 2 (m1 - m2)^T (x - m1) + N / (N - 1) (|x - m1|^2 - (x - m1)^T T (x - m1)) - its mean.

With factors S = F F^T and the singular values s of F1^T F2 = U diag(s) V^T, which the distance itself needs, the map is
T = F1^-T U diag(s) U^T F1^-1, and the quadratic form is a sum of squares: no matrix root, one triangular solve.
Letters: N samples, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from evaluation.images.frechet import as_features
from launch.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FrechetInfluence:
    """The distance of two sets, and the influence of each image of the first (N,) and of the second (M,), centred."""

    value: float
    first: Array
    second: Array

    @property
    def variance(self) -> tuple[float, float]:
        """What the chance in each set adds to the variance of the distance: var(h) / N, to first order."""
        return tuple(float(h.var(ddof=1)) / len(h) for h in (self.first, self.second))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Whitened:
    """One set: mean, centred rows (N, D), a factor of its covariance, and the rows in the factor's coordinates."""

    mean: Array
    centred: Array
    factor: Array
    rows: Array


def _whiten(features: Array) -> _Whitened:
    mean, n = features.mean(axis=0), len(features)
    centred = features - mean
    if n > features.shape[1]:
        try:
            factor = np.linalg.cholesky(centred.T @ centred / (n - 1))
            return _Whitened(mean, centred, factor, scipy.linalg.solve_triangular(factor, centred.T, lower=True).T)
        except np.linalg.LinAlgError:
            pass
    # Fewer images than dimensions, or a singular covariance: the rows' own principal axes.
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    keep = s > s.max(initial=0.0) * max(features.shape) * np.finfo(np.float64).eps
    root = np.sqrt(n - 1)
    return _Whitened(mean, centred, vt[keep].T * (s[keep] / root), u[:, keep] * root)


def frechet_influence(first: ArrayLike, second: ArrayLike) -> FrechetInfluence:
    """The Fréchet distance of features (N, D) and (M, D), and what each row does to it."""
    x, y = as_features(first, "the first set"), as_features(second, "the second set")
    if min(len(x), len(y)) < 2:
        raise UserError(f"a Fréchet distance needs at least two images in each set; there are {len(x)} and {len(y)}")
    if x.shape[1] != y.shape[1]:
        raise UserError(f"the sets have {x.shape[1]} and {y.shape[1]} dimensions; use one extractor for both")
    one, two = _whiten(x), _whiten(y)
    product = one.factor.T @ two.factor
    u, s, vt = np.linalg.svd(product, full_matrices=False) if product.size else (product, np.zeros(0), product.T)
    shift = one.mean - two.mean
    value = shift @ shift + np.sum(one.factor**2) + np.sum(two.factor**2) - 2 * s.sum()
    parts = [
        2 * sign * part.centred @ shift
        + ((part.centred**2).sum(axis=1) - (part.rows @ axes) ** 2 @ s) * len(part.rows) / (len(part.rows) - 1)
        for part, axes, sign in ((one, u, 1.0), (two, vt.T, -1.0))
    ]
    return FrechetInfluence(max(float(value), 0.0), *(h - h.mean() for h in parts))
