"""The few numbers that a stage tells its user at the end, out of its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LIMITS = (("_low", "_high"), ("_ci_low", "_ci_high"))
"""How summaries name the ends of a number's interval."""


def headline(templates: Sequence[str], summary: Mapping[str, Any], folder: str) -> list[str]:
    """Each template with its `{name}`s filled from the summary, and `{folder}` from `folder`.

    A number that has an interval in the summary brings it along. A template that asks for what the summary lacks (such
    as held-out numbers of a run that held nothing out) is left out.
    """
    shown = {**{name: _show(name, summary) for name in summary}, "folder": folder}
    lines = []
    for template in templates:
        try:
            lines.append(template.format_map(shown))
        except KeyError:
            continue
    return lines


def _show(name: str, summary: Mapping[str, Any]) -> str:
    """`0.7123 [0.68, 0.74]`: four digits, integers and text as they are."""
    value = _digits(summary[name])
    for low, high in LIMITS:
        if name + low in summary and name + high in summary:
            return f"{value} [{_digits(summary[name + low])}, {_digits(summary[name + high])}]"
    return value


def _digits(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
