"""Agreement of raters beyond chance: Cohen's kappa of two, Krippendorff's alpha of many with gaps. Pure.

Letters: U units, R raters, V values, G clusters of units.

Both are smooth functions of sums over units, so that the interval is the jackknife over units, or over clusters of them
(all pairs of one prompt), cut at 1, the most that either can be. Where every unit agrees the jackknife sees no spread,
and there is no interval. With a single value everywhere chance explains everything, and there is no number: None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics.estimate import LEVEL, Estimate, no_interval
from evaluation.statistics.intervals import cluster_codes
from evaluation.statistics.jackknife import jackknife

Array = NDArray[np.float64]
Scale = Literal["nominal", "ordinal", "interval"]


def cohen_kappa(
    first: Sequence[object],
    second: Sequence[object],
    clusters: Sequence[object] | None = None,
    level: float = LEVEL,
) -> Estimate | None:
    """(p_o - p_e) / (1 - p_e) of two raters' nominal labels of U units (Cohen 1960); n counts clusters."""
    if len(first) != len(second) or not len(first):
        raise ValueError(f"cohen_kappa: {len(first)} and {len(second)} labels; give one of each rater for each unit")
    names = list(dict.fromkeys([*first, *second]))
    index = {name: i for i, name in enumerate(names)}
    table_UVV = np.zeros((len(first), len(names), len(names)))
    table_UVV[range(len(first)), [index[a] for a in first], [index[b] for b in second]] = 1.0
    return _estimate(table_UVV, clusters, _kappa, level)


def _kappa(sums_VV: Array) -> float:
    shares = sums_VV / sums_VV.sum()
    expected = float(shares.sum(0) @ shares.sum(1))
    return (float(np.trace(shares)) - expected) / (1 - expected) if expected < 1 else float("nan")


def krippendorff_alpha(
    ratings_UR: ArrayLike,
    scale: Scale = "nominal",
    clusters: Sequence[object] | None = None,
    level: float = LEVEL,
) -> Estimate | None:
    """1 - observed / expected disagreement of ratings (U, R), NaN where a rater did not rate (Krippendorff 2011).

    Units with fewer than two ratings say nothing of agreement and are left out. Disagreement of two values is 1
    ("nominal"), their squared difference ("interval"), or the squared number of ratings between them ("ordinal").
    """
    ratings = np.asarray(ratings_UR, dtype=np.float64)
    if ratings.ndim != 2:
        raise ValueError(f"krippendorff_alpha: expected (units, raters), got shape {ratings.shape}")
    kept = np.isfinite(ratings).sum(axis=1) >= 2
    if not kept.any():
        return None
    values = np.unique(ratings[kept][np.isfinite(ratings[kept])])
    counts_UV = (ratings[kept][:, :, None] == values).sum(axis=1).astype(np.float64)
    pairs_UVV = counts_UV[:, :, None] * counts_UV[:, None, :]
    pairs_UVV[:, range(values.size), range(values.size)] -= counts_UV
    pairs_UVV /= counts_UV.sum(axis=1)[:, None, None] - 1
    labels = None if clusters is None else [label for label, keep in zip(clusters, kept, strict=True) if keep]
    return _estimate(pairs_UVV, labels, lambda sums_VV: _alpha(sums_VV, values, scale), level)


def _alpha(coincidences_VV: Array, values: Array, scale: Scale) -> float:
    totals_V = coincidences_VV.sum(axis=1)
    n = float(totals_V.sum())
    distance_VV = _distances(totals_V, values, scale)
    expected = float(totals_V @ distance_VV @ totals_V)
    observed = float((coincidences_VV * distance_VV).sum())
    return 1 - (n - 1) * observed / expected if expected > 0 else float("nan")


def _distances(totals_V: Array, values: Array, scale: Scale) -> Array:
    if scale == "nominal":
        return 1.0 - np.eye(values.size)
    place = values if scale == "interval" else np.cumsum(totals_V) - totals_V / 2
    return np.asarray((place[:, None] - place[None]) ** 2)


def _estimate(
    table_UVV: Array, clusters: Sequence[object] | None, function: Callable[[Array], float], level: float
) -> Estimate | None:
    """A function of the sum of the table over units, with the jackknife over clusters of them."""
    if clusters is not None:
        codes = cluster_codes(clusters)
        sums_GVV = np.zeros((int(codes.max()) + 1, *table_UVV.shape[1:]))
        np.add.at(sums_GVV, codes, table_UVV)
        table_UVV = sums_GVV
    total_VV, n = table_UVV.sum(axis=0), len(table_UVV)
    value = function(total_VV)
    if not np.isfinite(value):
        return None
    left_out = np.array([function(total_VV - part_VV) for part_VV in table_UVV]) if n > 1 else np.array([np.nan])
    if not np.isfinite(left_out).all():
        return no_interval(value, n, level)
    if np.ptp(left_out) <= 1e-12:
        return no_interval(value, n, level, "the same without any of the units")
    method = "jackknife over units" if clusters is None else "jackknife over clusters"
    found = jackknife(value, n, left_out, level=level, method=method)
    return found if found.high is None else replace(found, high=min(1.0, found.high))
