"""The over-optimisation curves of a stage: rewards gained over the square root of the KL, from its evaluations.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.preferences.overoptimisation import OveroptimisationFit, best_fit, predicted_gain
from evaluation.report.charts import Point, Scatter, scatter
from evaluation.report.collect import FoundStage
from evaluation.report.text import format_number

LINE = 60
"""Points of a fitted line."""


@dataclass(frozen=True)
class Overoptimisation:
    """The curves of one stage."""

    name: str
    color: int
    curves: list[tuple[str, Scatter, str]]
    """Which reward, its chart, and what its fit says."""


def overoptimisation_of(stage: FoundStage, color: int) -> Overoptimisation | None:
    """The curves of the gold and of the training reward; None with fewer than two evaluations."""
    curves = []
    for kind in ("gold", "proxy"):
        points = _points(stage, f"{kind}_reward_gain")
        if len(points) > 1:
            fit = best_fit([p.x for p in points], [p.y for p in points])
            title = "gold reward" if kind == "gold" else "training reward (proxy)"
            curves.append((title, scatter(points, _line(points, fit), color), _describe(fit)))
    return Overoptimisation(stage.name, color, curves) if curves else None


def _points(stage: FoundStage, name: str) -> list[Point]:
    """The evaluations as points; before the first update both are 0."""
    rows = [row for row in stage.evaluations if name in row and "sqrt_kl" in row]
    return [Point(row["sqrt_kl"], row[name], row.get(f"{name}_ci_low"), row.get(f"{name}_ci_high")) for row in rows]


def _line(points: Sequence[Point], fit: OveroptimisationFit | None) -> list[tuple[float, float]]:
    if fit is None:
        return []
    distances = np.linspace(0.0, max(point.x for point in points), LINE)
    return list(zip(distances.tolist(), predicted_gain(distances, fit).tolist(), strict=True))


def _describe(fit: OveroptimisationFit | None) -> str:
    if fit is None:
        return "Fewer than three different distances: no fit."
    coefficients = "; ".join(
        f"{name} {format_number(e.value, 3)} [{format_number(e.low, 3)}, {format_number(e.high, 3)}]"
        for name, e in (("α", fit.alpha), ("β", fit.beta))
    )
    peak = "" if fit.peak is None else f"; highest at √KL {format_number(fit.peak, 2)}"
    return f"Line: {fit.formula}, {coefficients}{peak}."
