"""The one result type of the statistics core: a value, how well it is known, and by which method. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit  # scipy.stats takes a second to import

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and how well it is known. `n` counts the independent units; limits are None where n is too small.

    `method` names how the interval was made, or says "none (why)".
    """

    value: float
    n: int
    stderr: float | None
    low: float | None
    high: float | None
    level: float
    method: str


def as_vector(values: ArrayLike, name: str = "values") -> NDArray[np.float64]:
    """`values` as float64 (n,); ValueError when empty, not one-dimensional or not finite."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name}: expected a non-empty vector, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name}: {int((~np.isfinite(vector)).sum())} of {vector.size} values are not finite")
    return vector


def z_quantile(level: float) -> float:
    """Two-sided standard normal quantile: 1.95996 for level 0.95."""
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")
    return float(ndtri(0.5 + level / 2))


def t_quantile(freedom: float, level: float) -> float:
    """Two-sided quantile of Student's t with `freedom` degrees: 12.706 for 1 and level 0.95; inf gives the normal one."""
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")
    return float(stdtrit(freedom, 0.5 + level / 2))


def student_interval(value: float, stderr: float, n: int, level: float, method: str, freedom: float) -> Estimate:
    """value +- quantile * stderr, Student's t with `freedom` degrees (inf: normal); no limits below one degree."""
    if freedom < 1:
        return no_interval(value, n, level)
    half = t_quantile(freedom, level) * stderr
    return Estimate(value, n, stderr, value - half, value + half, level, method)


def no_interval(value: float, n: int, level: float, why: str = "") -> Estimate:
    """A value whose uncertainty cannot be told, with the reason."""
    return Estimate(value, n, None, None, None, level, f"none ({why or f'n = {n}'})")
