"""Corrections of p-values for many comparisons. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics.estimate import as_vector


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's (1979) adjusted p-values (m,): reject those <= alpha, and any false rejection has probability <= alpha."""
    p = _p_vector(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return _unsort(np.minimum(adjusted, 1.0), order)


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """Benjamini and Hochberg's (1995) adjusted p-values (m,): reject those <= q for a false discovery rate <= q."""
    p = _p_vector(p_values)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * p.size / np.arange(1, p.size + 1)
    adjusted = np.minimum.accumulate(scaled[::-1])[::-1]
    return _unsort(np.minimum(adjusted, 1.0), order)


def _p_vector(p_values: ArrayLike) -> NDArray[np.float64]:
    p = as_vector(p_values, "p_values")
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p_values: must lie between 0 and 1")
    return p


def _unsort(ordered: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.float64]:
    result = np.empty_like(ordered)
    result[order] = ordered
    return result
