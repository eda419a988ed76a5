"""The per-sample scores behind a metric, so that two models can be compared on the same items. Pure.

A score is taken only when it explains the reported number: the mean over the items must be the metric's value and their
units must be as many as its n. So a row of the wrong kind is never paired by accident; such a metric has no paired difference.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.report.collect import FoundResult
from evaluation.report.leaderboard import Leaderboard
from evaluation.safety.refusal_metrics import answers
from evaluation.schema import Metric, read_samples

Row = dict[str, Any]
ItemKey = tuple[str, int]
"""What names an item, and which of several samples of it this one is."""

TOLERANCE = 1e-6
NAMING = (("item",), ("prompt", "chosen", "rejected"), ("prompt",), ("origin",), ("id",), ("doc_id",))
"""Fields that name an item; the first that a row has count."""


@dataclass(frozen=True)
class Items:
    """Scores of one subject on one metric: item -> score, and item -> the unit (prompt) that it belongs to."""

    scores: dict[ItemKey, float]
    units: dict[ItemKey, str]


def item_keys(rows: Sequence[Row]) -> list[ItemKey]:
    """A key for each row that is the same for the same item of another result."""
    seen: Counter[str] = Counter()
    keys = []
    for row in rows:
        name = _item_name(row)
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


def _item_name(row: Row) -> str:
    for fields in NAMING:
        if all(isinstance(row.get(field), (str, int)) for field in fields):
            return json.dumps([row[field] for field in fields])
    return ""


def item_scores(entry: Metric, rows: Sequence[Row]) -> Items | None:
    """The scores whose mean is the metric's value, or None where the rows do not hold them."""
    if entry.value is None:
        return None
    for values in _candidates(entry, rows):
        chosen = {i: float(value) for i, value in enumerate(values) if value is not None}
        if not _has_mean(entry.value, list(chosen.values())):  # so most candidates end, before the keys are made
            continue
        keys = item_keys(rows)
        if any(not name for name, _ in keys):
            return None
        units = {keys[i]: str(rows[i].get("prompt", keys[i])) for i in chosen}
        if len(set(units.values())) == entry.n:
            return Items({keys[i]: value for i, value in chosen.items()}, units)
    return None


def _has_mean(expected: float, values: list[float]) -> bool:
    if not values or not np.isfinite(values).all():
        return False
    return abs(float(np.mean(values)) - expected) <= TOLERANCE * max(1.0, abs(expected))


# ---------------------------------------------------------------------------------------------- candidates


def _candidates(entry: Metric, rows: Sequence[Row]) -> Iterator[list[float | None]]:
    """Vectors that may be the metric's scores: by the metric's name, by its derivation, and as a ratio of sums."""
    bare = entry.name.removesuffix("_rate").removeprefix("mean_").removeprefix("share_")
    yield [_number(row["scores"].get(entry.name)) if isinstance(row.get("scores"), dict) else None for row in rows]
    for field in dict.fromkeys((entry.name, bare)):
        yield [_number(row.get(field)) for row in rows]
        yield [None if row.get(field) is None else float(bool(row[field])) for row in rows]
    for derive in DERIVED.get(entry.name, ()):
        yield [derive(row) for row in rows]
    if entry.name in RATIOS and entry.value is not None:
        yield _linearised(entry.value, rows, *RATIOS[entry.name])


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (bool, int, float)) else None


def _margin(tie: float) -> Callable[[Row], float | None]:
    def score(row: Row) -> float | None:
        margin = _number(row.get("margin"))
        return None if margin is None else tie if margin == 0 else float(margin > 0)

    return score


def _over_refusal(row: Row) -> float | None:
    return float(bool(row.get("refusal"))) if row.get("prompt_safe") is True else None


def _compliance(row: Row) -> float | None:
    return float(answers(row.get("refusal"), row.get("degenerate"))) if row.get("prompt_safe") is False else None


DERIVED: dict[str, tuple[Callable[[Row], float | None], ...]] = {
    "win_rate": (lambda row: _number(row.get("outcome")),),
    "judge_reward": (lambda row: _number(row.get("reward")),),
    "baseline_judge_reward": (lambda row: _number(row.get("baseline_reward")),),
    "accuracy": (_margin(0.5), _margin(0.0), lambda row: _number(row.get("correct"))),
    "over_refusal_rate": (_over_refusal,),
    "unsafe_compliance_rate": (_compliance,),
    "mean_length": (lambda row: _number(row.get("tokens")),),
    "mean_characters": (lambda row: float(len(row["completion"])) if isinstance(row.get("completion"), str) else None,),
}
"""Metrics whose scores have another name in the rows than the metric."""

RATIOS: dict[str, tuple[str, str, float]] = {"bits_per_byte": ("nats", "bytes", 1 / math.log(2))}
"""Metrics that are ratios of sums: numerator, denominator, factor."""


def _linearised(ratio: float, rows: Sequence[Row], above: str, below: str, factor: float) -> list[float | None]:
    """Values whose mean is the ratio and whose spread is its delta-method error: R + (a_i - R b_i) / mean(b).

    On the same items two models share the denominators, so that the mean of their differences is the difference of ratios.
    """
    pairs = [(_number(row.get(above)), _number(row.get(below))) for row in rows]
    sizes = [b for a, b in pairs if a is not None and b]
    if not sizes:
        return [None] * len(rows)
    middle = sum(sizes) / len(sizes)
    return [None if a is None or not b else ratio + (a * factor - ratio * b) / middle for a, b in pairs]


# ---------------------------------------------------------------------------------------------- of a leaderboard

BoardItems = dict[str, dict[str, Items]]
"""Column key -> subject -> the scores on its items."""


def board_items(
    board: Leaderboard, rows_of: Callable[[FoundResult], Sequence[Row]], found: Sequence[FoundResult]
) -> BoardItems:
    """The scores behind a leaderboard's directed columns, as far as the samples of the results hold them."""
    folders = {id(entry.result): entry for entry in found}
    items: BoardItems = {}
    for column in board.columns:
        if column.higher_is_better is None:
            continue
        for row in board.rows:
            cell = row.cells.get(column.key)
            source = folders.get(id(board.results[cell.source])) if cell else None
            if cell and source and (scores := item_scores(cell.metric, rows_of(source))):
                items.setdefault(column.key, {})[row.name] = scores
    return items


class SampleReader:
    """The rows of results, each file read once."""

    def __init__(self) -> None:
        self._rows: dict[Path, list[Row]] = {}

    def __call__(self, found: FoundResult) -> list[Row]:
        """The rows of a result; none where it has no samples."""
        if found.result.samples is None:
            return []
        if found.folder not in self._rows:
            self._rows[found.folder] = read_samples(found.folder, found.result.samples)
        return self._rows[found.folder]
