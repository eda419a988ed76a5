"""Robustness curves: what a metric is after each treatment of the images, from none to the strongest. Pure.

A treatment is a slice whose name is its kind and strength, as in `jpeg:75`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from evaluation.report.charts import Ends, Scale, steps
from evaluation.report.leaderboard import distinct_names, protocol_hash
from evaluation.report.names import title_of
from evaluation.report.text import format_number
from evaluation.report.views import COLORS, chance_of, interval_text
from evaluation.schema import EvaluationResult, Metric

CURVE_GROUPS = ("robustness", "watermark after")
"""Slices that are shown as curves over the strength of a treatment."""
UNTREATED = "none"
STRONGER_IS_LESS = {"jpeg": True, "resize": True, "blur": False}
AXES = {"jpeg": "JPEG quality", "resize": "Made smaller and brought back, factor", "blur": "Blur, sigma in pixels"}
WHOLE = ("{}", "{}_own_generator", "{}_other_generators")
"""What the untreated metric may be called: a detector's mean over generators is not the metric of one."""


@dataclass(frozen=True)
class StepFigure:
    """The curves of one kind of treatment, all entries in one picture."""

    title: str
    ticks: list[str]
    svg: Markup


@dataclass(frozen=True)
class RobustnessView:
    """One metric after all treatments: a picture for each kind, and its numbers as a table."""

    title: str
    arrow: str
    unit: str
    low: str
    high: str
    entries: list[tuple[str, int]]
    """Names and colours."""
    figures: list[StepFigure]
    rows: list[tuple[str, list[str]]]
    """Treatment -> the number of each entry with its interval, as texts."""
    bare: list[str] = field(default_factory=list)
    """Entries with points that have no interval."""


@dataclass
class _Measured:
    """Entry -> treatment -> metric, and the treatments in their order."""

    entries: dict[str, dict[str, Metric]] = field(default_factory=dict)
    treatments: dict[str, None] = field(default_factory=lambda: {UNTREATED: None})

    def ends(self, name: str, treatment: str) -> Ends | None:
        entry = self.entries[name].get(treatment)
        return None if entry is None or entry.value is None else (entry.value, entry.ci_low, entry.ci_high)


def robustness_views(results: Sequence[EvaluationResult], colors: Mapping[str, int]) -> list[RobustnessView]:
    """A view of each metric that results of one protocol give after treatments."""
    found: dict[tuple[str, ...], _Measured] = {}
    for result in distinct_names(results):
        for part in result.slices:
            for entry in part.metrics if part.group in CURVE_GROUPS else []:
                if entry.value is not None:
                    key = (part.group, entry.name, result.subject.kind, protocol_hash(result.protocol))
                    _add(found.setdefault(key, _Measured()), result, part.name, entry)
    return [_view(measured, colors) for measured in found.values()]


def _add(measured: _Measured, result: EvaluationResult, treatment: str, entry: Metric) -> None:
    whole = {m.name: m for m in result.metrics}
    own = measured.entries.setdefault(result.subject.name, {})
    start = next((whole[name] for pattern in WHOLE if (name := pattern.format(entry.name)) in whole), None)
    if start is not None:
        own[UNTREATED] = start
    own[treatment] = entry
    measured.treatments[treatment] = None


def _view(measured: _Measured, colors: Mapping[str, int]) -> RobustnessView:
    metrics = [entry for own in measured.entries.values() for entry in own.values()]
    first = next(entry for own in measured.entries.values() for name, entry in own.items() if name != UNTREATED)
    chance, factor = chance_of(first.name), 100 if first.unit == "share" else 1
    decimals = 1 if factor == 100 else 2
    ends = [v for m in metrics for v in (m.value, m.ci_low, m.ci_high) if v is not None]
    scale = Scale.of([*ends, *([] if chance is None else [chance])], share=first.unit == "share")
    bare = [n for n, own in measured.entries.items() if any(m.ci_low is None for m in own.values())]
    chosen = {name: colors.get(name, place % COLORS) for place, name in enumerate(measured.entries)}

    def text(name: str, treatment: str) -> str:
        entry = measured.entries[name].get(treatment)
        if entry is None or entry.value is None:
            return ""
        return f"{format_number(entry.value * factor, decimals)} {interval_text(entry, factor, decimals)}".strip()

    return RobustnessView(
        title=title_of(first.name),
        arrow={True: "↑", False: "↓", None: ""}[first.higher_is_better],
        unit="%" if factor == 100 else first.unit,
        low=format_number(scale.low * factor, decimals),
        high=format_number(scale.high * factor, decimals),
        entries=list(chosen.items()),
        figures=[_figure(kind, names, measured, chosen, scale, chance) for kind, names in _kinds(measured).items()],
        rows=[(name, [text(entry, name) for entry in chosen]) for name in measured.treatments],
        bare=bare,
    )


def _kinds(measured: _Measured) -> dict[str, list[str]]:
    """Kind -> its treatments, the mildest first; kinds that are not known here stay in the order of the result."""
    kinds: dict[str, list[str]] = {}
    for treatment in measured.treatments:
        if treatment != UNTREATED:
            kinds.setdefault(treatment.partition(":")[0], []).append(treatment)
    for kind, names in kinds.items():
        if kind in STRONGER_IS_LESS:
            names.sort(key=_strength, reverse=STRONGER_IS_LESS[kind])
    return kinds


def _strength(treatment: str) -> float:
    """The number behind the colon; 0 where there is none."""
    try:
        return float(treatment.partition(":")[2])
    except ValueError:
        return 0.0


def _figure(
    kind: str,
    treatments: Sequence[str],
    measured: _Measured,
    colors: Mapping[str, int],
    scale: Scale,
    chance: float | None,
) -> StepFigure:
    places = [UNTREATED, *treatments]
    lines = [([measured.ends(name, place) for place in places], color) for name, color in colors.items()]
    ticks = [UNTREATED, *(name.partition(":")[2] or name for name in treatments)]
    return StepFigure(AXES.get(kind, kind), ticks, steps(lines, scale, chance))
