"""Charts as inline SVG without any text: the page sets labels in HTML around them, so that they stretch and stay legible.

Coordinates are percent of a stretched view box; strokes do not scale. A dot is a line of no length with round caps.
Everything is drawn by CSS classes, which know the colour scheme; `aria-hidden`, since the numbers stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

POINTS = 160
"""Points of a curve; longer logs are averaged in equal parts."""


@dataclass(frozen=True)
class Scale:
    """The range of values that an axis spans."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], padding: float = 0.06, share: bool = False) -> Scale:
        """A scale that holds all finite values, with some room at both ends; one value alone lies in the middle.

        The room stops at 0 for values that are not negative, and at 1 for values that are not above it; of a `share` it
        never passes them, though an interval may.
        """
        finite = [v for v in values if math.isfinite(v)]
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        if share:
            floor, ceiling = min(low, 0.0), max(high, 1.0)
        else:
            floor, ceiling = (0.0 if low >= 0 else -math.inf), (1.0 if high <= 1 else math.inf)
        if high == low:
            below, above = low - (abs(low) / 2 or 1.0), high + (abs(high) / 2 or 1.0)
            return cls(max(below, floor), min(above, ceiling)) if share else cls(below, above)
        room = (high - low) * padding
        return cls(max(low - room, floor), min(high + room, ceiling))

    def place(self, value: float) -> float:
        """Where a value lies, in 0..100."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def _svg(height: int, body: Markup, kind: str) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 100 {}" preserveAspectRatio="none" aria-hidden="true" focusable="false">{}</svg>'
    ).format(kind, height, body)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, x1, y1, x2, y2)


def whisker(
    value: float, low: float | None, high: float | None, scale: Scale, reference: float | None, color: int
) -> Markup:
    """One row of a dot plot: the interval as a line with ends, the value as a dot, the reference as a dashed line."""
    parts = []
    if reference is not None and scale.low <= reference <= scale.high:
        parts.append(_line(scale.place(reference), 0, scale.place(reference), 20, "ref"))
    if low is not None and high is not None:
        a, b = scale.place(low), scale.place(high)
        parts.append(_line(a, 10, b, 10, f"span c{color}"))
        parts.extend(_line(x, 6, x, 14, f"end c{color}") for x in (a, b))
    x = scale.place(value)
    parts.append(_line(x, 10, x, 10, f"dot c{color}"))
    return _svg(20, Markup("").join(parts), "whisker")


@dataclass(frozen=True)
class Curve:
    """A training curve with what its labels say."""

    name: str
    svg: Markup
    first_step: int
    last_step: int
    lowest: float
    highest: float
    last: float
    averaged: int
    """Steps that one point stands for."""
    broken: int
    """Values that were NaN or infinite."""


def curve(name: str, steps: Sequence[int], values: Sequence[float], color: int) -> Curve | None:
    """A curve of values over steps, averaged to at most 160 points; None without two finite values."""
    y = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(y)
    if finite.sum() < 2:
        return None
    x, y = np.asarray(steps, dtype=np.float64)[finite], y[finite]
    width = -(-len(y) // POINTS)
    parts = [slice(i, i + width) for i in range(0, len(y), width)]
    xs, ys = np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])
    across, up = Scale.of([x[0], x[-1]], 0.0), Scale.of(ys.tolist(), 0.0)

    def height(value: float) -> float:
        return round(57 - 0.54 * up.place(value), 2)

    points = " ".join(f"{across.place(a)},{height(b)}" for a, b in zip(xs, ys, strict=True))
    grid = [_line(0, y0, 100, y0, "rule") for y0 in (3, 30, 57)]
    zero = [_line(0, height(0), 100, height(0), "ref")] if up.low < 0 < up.high else []
    body = Markup("").join([*grid, *zero, Markup('<polyline class="line c{}" points="{}"/>').format(color, points)])
    return Curve(
        name=name,
        svg=_svg(60, body, "curve"),
        first_step=int(x[0]),
        last_step=int(x[-1]),
        lowest=float(up.low),
        highest=float(up.high),
        last=float(ys[-1]),
        averaged=width,
        broken=int((~finite).sum()),
    )


# ---------------------------------------------------------------------------------------------- scatter


@dataclass(frozen=True)
class Point:
    """A point with an interval of its height, or without."""

    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Scatter:
    """Points with whiskers and a line through them, and the ends of the axes for the labels."""

    svg: Markup
    left: float
    right: float
    lowest: float
    highest: float


def scatter(points: Sequence[Point], line: Sequence[tuple[float, float]], color: int) -> Scatter:
    """Points over an axis that begins at 0, and a dashed line at height 0."""
    across = Scale(0.0, max(p.x for p in points) or 1.0)
    up = Scale.of(
        [0.0, *(v for p in points for v in (p.y, p.low, p.high) if v is not None), *(y for _, y in line)], 0.0
    )

    def height(value: float) -> float:
        return round(57 - 0.54 * up.place(value), 2)

    def along(value: float) -> float:  # a dot or whisker at an end would be cut in half by the edge of the picture
        return round(2 + 0.96 * across.place(value), 2)

    parts = [_line(0, y0, 100, y0, "rule") for y0 in (3, 57)] + [_line(0, height(0), 100, height(0), "ref")]
    if line:
        places = " ".join(f"{along(x)},{height(y)}" for x, y in line)
        parts.append(Markup('<polyline class="line c{}" points="{}"/>').format(color, places))
    for point in points:
        x = along(point.x)
        if point.low is not None and point.high is not None:
            parts.append(_line(x, height(point.low), x, height(point.high), f"span c{color}"))
        parts.append(_line(x, height(point.y), x, height(point.y), f"dot c{color}"))
    return Scatter(_svg(60, Markup("").join(parts), "curve"), across.low, across.high, up.low, up.high)


Ends = tuple[float, float | None, float | None]
"""A value with the ends of its interval, if it has one."""


DODGE = 9.0
"""How far, in percent of a tick's room, the whiskers of neighbouring lines are moved apart."""


def steps(lines: Sequence[tuple[Sequence[Ends | None], int]], up: Scale, reference: float | None) -> Markup:
    """Lines over ticks of equal room, each as (value with its interval, or None, at every tick; colour)."""

    def height(value: float) -> float:
        return round(57 - 0.54 * up.place(value), 2)

    parts = [_line(0, y, 100, y, "rule") for y in (3, 57)]
    if reference is not None and up.low <= reference <= up.high:
        parts.append(_line(0, height(reference), 100, height(reference), "ref"))
    for place, (ends, color) in enumerate(lines):
        moved = DODGE * (place - (len(lines) - 1) / 2) / max(1.0, len(lines) / 4)
        room = 100 / max(1, len(ends))
        found = [(round((tick + 0.5 + moved / 100) * room, 2), e) for tick, e in enumerate(ends) if e is not None]
        path = " ".join(f"{x},{height(value)}" for x, (value, _, _) in found)
        parts.append(Markup('<polyline class="line c{}" points="{}"/>').format(color, path))
        for x, (value, low, high) in found:
            if low is not None and high is not None:
                parts.append(_line(x, height(low), x, height(high), f"span c{color}"))
            parts.append(_line(x, height(value), x, height(value), f"dot c{color}"))
    return _svg(60, Markup("").join(parts), "curve steps")


def plane(points: Sequence[tuple[Ends, Ends, int]], across: Scale, up: Scale) -> Markup:
    """Points with whiskers both ways: (horizontal, vertical, colour) of each. View box 100 by 100, origin at the lower left."""

    def place(scale: Scale, value: float) -> float:
        return round(2 + 0.96 * scale.place(min(value, scale.high)), 2)

    parts = [_line(2, y, 98, y, "rule") for y in (2, 50, 98)] + [_line(x, 2, x, 98, "rule") for x in (2, 50, 98)]
    for (x, x_low, x_high), (y, y_low, y_high), color in points:
        column, row = place(across, x), 100 - place(up, y)
        if x_low is not None and x_high is not None:
            parts.append(_line(place(across, x_low), row, place(across, x_high), row, f"span c{color}"))
        if y_low is not None and y_high is not None:
            parts.append(_line(column, 100 - place(up, y_low), column, 100 - place(up, y_high), f"span c{color}"))
        parts.append(_line(column, row, column, row, f"dot c{color}"))
    return _svg(100, Markup("").join(parts), "plane")


# ---------------------------------------------------------------------------------------------- lineage

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 168, 44, 40, 14


def depths(parents: Sequence[Sequence[int]]) -> list[int]:
    """The longest path from a root to each node; parents have smaller indices than their children."""
    found: list[int] = []
    for own in parents:
        found.append(max((found[p] + 1 for p in own), default=0))
    return found


def lineage(labels: Sequence[tuple[str, str, str]], parents: Sequence[Sequence[int]]) -> Markup:
    """A graph from left to right: (link target, name, second line) of each node, and the indices of its parents.

    This one has text and a fixed size; the page lets it scroll.
    """
    level = depths(parents)
    rows = [sum(1 for j in range(i) if level[j] == level[i]) for i in range(len(level))]
    tallest = max((level.count(d) for d in set(level)), default=0)
    place = [
        (d * (BOX_WIDTH + GAP_X) + 1, round((r + (tallest - level.count(d)) / 2) * (BOX_HEIGHT + GAP_Y)) + 1)
        for d, r in zip(level, rows, strict=True)
    ]
    parts = [_edge(place[p], place[i]) for i, own in enumerate(parents) for p in own]
    parts += [_box(label, *place[i]) for i, label in enumerate(labels)]
    width = (max(level, default=0) + 1) * (BOX_WIDTH + GAP_X) - GAP_X + 2
    height = tallest * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2
    return Markup('<svg class="lineage" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" '
                  'aria-label="How the stages follow from each other; the table below says the same">{2}</svg>').format(
        width, height, Markup("").join(parts)
    )  # fmt: skip


def _edge(start: tuple[int, int], end: tuple[int, int]) -> Markup:
    x1, y1 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT // 2
    x2, y2 = end[0], end[1] + BOX_HEIGHT // 2
    middle = (x1 + x2) / 2
    return Markup('<path class="edge" d="M{},{} C{},{} {},{} {},{}"/>').format(x1, y1, middle, y1, middle, y2, x2, y2)


def _box(label: tuple[str, str, str], x: int, y: int) -> Markup:
    target, name, below = label
    return Markup(
        '<a href="#{}"><rect class="box" x="{}" y="{}" width="{}" height="{}" rx="6"/>'
        '<text class="name" x="{}" y="{}">{}</text><text class="below" x="{}" y="{}">{}</text></a>'
    ).format(target, x, y, BOX_WIDTH, BOX_HEIGHT, x + 12, y + 19, name, x + 12, y + 34, below)
