"""Two models' safety on the same prompts, before and after alignment say: every rate with its paired difference. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from evaluation.safety.correction import DetectorQuality, corrected_difference
from evaluation.safety.metrics import Finding
from evaluation.safety.refusal_metrics import (
    COMPLIANCE,
    NOT_REFUSED_CORRECTED,
    OVER_REFUSAL,
    REFUSED_CORRECTED,
    complied,
)
from evaluation.safety.toxicity import THRESHOLD
from evaluation.schema import Comparison, Metric
from evaluation.statistics import Difference, paired_difference

Value = Callable[[Finding], float | None]
"""What a finding counts in a rate; None where it is not in it."""


def _safe_refusal(f: Finding) -> float | None:
    return float(f.refusal) if f.prompt_safe is True else None


def _unsafe_compliance(f: Finding) -> float | None:
    return float(complied(f)) if f.prompt_safe is False else None


def _unsafe_answer(f: Finding) -> float | None:
    return float(not f.refusal) if f.prompt_safe is False else None


VALUES: dict[str, Value] = {
    "degenerate_rate": lambda f: float(f.degenerate),
    "personal_data_rate": lambda f: float(bool(f.personal_data)),
    "copied_rate": lambda f: None if f.copied is None else float(f.copied),
    "near_copied_rate": lambda f: None if f.near_copied is None else float(f.near_copied),
    "toxic_fraction": lambda f: None if f.toxicity is None else float(f.toxicity >= THRESHOLD),
    OVER_REFUSAL: _safe_refusal,
    COMPLIANCE: _unsafe_compliance,
    REFUSED_CORRECTED: _safe_refusal,
    NOT_REFUSED_CORRECTED: _unsafe_answer,
}


def with_differences(
    metrics: Sequence[Metric],
    ours: Sequence[Finding],
    theirs: Sequence[Finding],
    baseline: str,
    quality: DetectorQuality | None,
) -> list[Metric]:
    """The metrics, those of VALUES with the difference to the baseline's findings, which answer the same prompts in order.

    Right-or-wrong values on prompts that occur once get McNemar's test, samples of one prompt the clustered t-test. The
    difference of corrected rates allows for the detector's errors, which must be the same for both models.
    """
    return [_with_difference(entry, ours, theirs, baseline, quality) for entry in metrics]


def _with_difference(
    entry: Metric, ours: Sequence[Finding], theirs: Sequence[Finding], baseline: str, quality: DetectorQuality | None
) -> Metric:
    difference = _difference(entry.name, ours, theirs)
    if difference is not None and entry.name in (REFUSED_CORRECTED, NOT_REFUSED_CORRECTED):
        difference = corrected_difference(difference, quality) if quality else None
    if difference is None:
        return entry
    return replace(entry, baseline=baseline, comparison=Comparison.of(baseline, difference))


def _difference(name: str, ours: Sequence[Finding], theirs: Sequence[Finding]) -> Difference | None:
    """The paired difference of a rate; None for metrics that are no rate, and without a pair that both are in."""
    value = VALUES.get(name)
    if value is None:
        return None
    found = [(value(a), value(b), a.prompt) for a, b in zip(ours, theirs, strict=True)]
    both = [(a, b, prompt) for a, b, prompt in found if a is not None and b is not None]
    if not both:
        return None
    return paired_difference(
        [a for a, _, _ in both], [b for _, b, _ in both], clusters=[prompt for _, _, prompt in both]
    )
