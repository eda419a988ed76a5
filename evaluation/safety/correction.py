"""Rates behind a detector that errs: corrected for its sensitivity and specificity, whose uncertainty is carried along.

With Se the share of true cases that are detected and Sp the share of others that are let pass, a true rate r shows as
p = r Se + (1 - r)(1 - Sp), so that r = (p + Sp - 1) / (Se + Sp - 1) (Rogan and Gladen 1978). The interval is that of
Lang and Reiczigel (2014, Preventive Veterinary Medicine 113:13-22): the delta method after adding z^2/2 detections and
z^2/2 others to p, one hit and one miss to each of Se and Sp, with their shift of the centre. It keeps a width where p,
Se or Sp are 0 or 1, where the plain delta method claims certainty. Coverage by simulation: docs/safety.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evaluation.statistics import LEVEL, Difference, Estimate, wilson
from evaluation.statistics.estimate import z_quantile

METHOD = "Rogan-Gladen, Lang-Reiczigel"


@dataclass(frozen=True)
class DetectorQuality:
    """Sensitivity (true cases that are found) and specificity (others that are let pass), from labelled texts."""

    sensitivity: Estimate
    specificity: Estimate


def measure_detector(detected: Sequence[bool], labels: Sequence[bool], level: float = LEVEL) -> DetectorQuality:
    """Compare detections with human labels. ValueError unless both kinds are among the labels."""
    hits = [d for d, label in zip(detected, labels, strict=True) if label]
    passes = [not d for d, label in zip(detected, labels, strict=True) if not label]
    if not hits or not passes:
        raise ValueError("labels: hold one kind only; sensitivity and specificity need true cases and others")
    return DetectorQuality(wilson(sum(hits), len(hits), level), wilson(sum(passes), len(passes), level))


def corrected_rate(detected: Estimate, quality: DetectorQuality) -> Estimate | None:
    """The true rate behind a detected one, in [0, 1], with an interval that allows for the errors of Se and Sp too.

    The value is Rogan and Gladen's; its standard error the delta method's; the interval Lang and Reiczigel's. None when
    the detector does no better than chance, Se + Sp <= 1.
    """
    se, sp = quality.sensitivity, quality.specificity
    if se.value + sp.value <= 1:
        return None
    z, n = z_quantile(detected.level), effective_trials(detected)
    value, error = _rogan_gladen(detected.value, n, se.value, se.n, sp.value, sp.n)
    se_1, sp_1 = ((e.value * e.n + 1) / (e.n + 2) for e in (se, sp))
    p_1 = (detected.value * n + z * z / 2) / (n + z * z)
    centre, spread = _rogan_gladen(p_1, n + z * z, se_1, se.n + 2, sp_1, sp.n + 2)
    centre += 2 * z * z * (centre * _variance(se_1, se.n + 2) - (1 - centre) * _variance(sp_1, sp.n + 2))
    value, low, high = (min(1.0, max(0.0, x)) for x in (value, centre - z * spread, centre + z * spread))
    return Estimate(value, detected.n, error, min(low, value), max(high, value), detected.level, METHOD)


def effective_trials(detected: Estimate) -> float:
    """The number of independent trials that carries a share's standard error; with clusters it is not their number."""
    p = detected.value
    return p * (1 - p) / detected.stderr**2 if detected.stderr and 0 < p < 1 else float(detected.n)


def _rogan_gladen(p: float, n: float, se: float, n_se: float, sp: float, n_sp: float) -> tuple[float, float]:
    """The rate and its standard error by the delta method, both unbounded."""
    youden = se + sp - 1
    rate = (p + sp - 1) / youden
    variance = _variance(p, n) + rate**2 * _variance(se, n_se) + (1 - rate) ** 2 * _variance(sp, n_sp)
    return rate, math.sqrt(variance) / youden


def _variance(share: float, n: float) -> float:
    return share * (1 - share) / n


def complement(estimate: Estimate) -> Estimate:
    """The estimate of the other share, 1 - value."""
    low, high = (None if x is None else 1 - x for x in (estimate.high, estimate.low))
    return replace(estimate, value=1 - estimate.value, low=low, high=high)


def corrected_difference(difference: Difference, quality: DetectorQuality) -> Difference | None:
    """The true difference of two rates by one detector: the detected one over Se + Sp - 1, errors of both included.

    Valid where Se and Sp are the same for both models. The p-value is that of the detected difference: it asks the same
    question, since one is zero exactly when the other is. None as for `corrected_rate`.
    """
    d, se, sp = difference.estimate, quality.sensitivity, quality.specificity
    youden = se.value + sp.value - 1
    if youden <= 0:
        return None
    if d.stderr is None or d.low is None or d.high is None:
        return replace(difference, estimate=replace(d, value=d.value / youden))
    half = (d.high - d.low) / 2 / z_quantile(d.level)  # the width that the paired interval claims, as a standard error
    share = [(e.value * e.n + 1) / (e.n + 2) for e in (se, sp)]
    noise = sum(_variance(s, e.n + 2) for s, e in zip(share, (se, sp), strict=True))
    error = math.sqrt(half**2 + (d.value / youden) ** 2 * noise) / youden
    middle, z = (d.low + d.high) / 2 / youden, z_quantile(d.level)
    low, high = max(-1.0, middle - z * error), min(1.0, middle + z * error)
    value = min(1.0, max(-1.0, d.value / youden))
    found = Estimate(value, d.n, error, min(low, value), max(high, value), d.level, f"{d.method}, over Youden's index")
    return replace(difference, estimate=found)
