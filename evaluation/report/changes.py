"""One run against an earlier one: which numbers changed for the worse, on the same items where both kept them. Pure.

Entries meet by kind, name, suite and metric, and only under equal protocols: other data, another judge or other settings
are refused, with what differs. Paths do not count where a content hash stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.special import ndtr

from evaluation.report.collect import FoundResult
from evaluation.report.items import Row, item_scores
from evaluation.report.leaderboard import REFERENCE_KINDS, differing_fields
from evaluation.report.paired import pair_difference
from evaluation.schema import Metric, Protocol
from evaluation.statistics import LEVEL, Difference, Estimate, holm
from evaluation.statistics.estimate import no_interval, z_quantile
from launch.config import to_dict

Verdict = Literal["worse", "better", "not told apart", "not tested"]
Name = tuple[str, str, str, str]
"""Kind, subject, suite and metric."""


@dataclass(frozen=True)
class Change:
    """One metric of one subject, before and now."""

    subject: str
    suite: str
    before: Metric
    now: Metric
    difference: Difference | None
    corrected: float | None
    """The p-value after Holm's correction over everything that was tested."""

    @property
    def verdict(self) -> Verdict:
        """What may be said; a metric without a direction is neither better nor worse."""
        if self.difference is None or self.corrected is None:
            return "not tested"
        value = self.difference.estimate.value
        if self.corrected > 1 - LEVEL or value == 0:
            return "not told apart"
        return "better" if (value > 0) == self.now.higher_is_better else "worse"


@dataclass(frozen=True)
class Changes:
    """All changes, and a sentence for each number that may not be compared."""

    changes: list[Change]
    refused: list[str]

    @property
    def worse(self) -> list[Change]:
        """Those that are significantly worse."""
        return [change for change in self.changes if change.verdict == "worse"]


def compare_runs(
    before: Sequence[FoundResult], now: Sequence[FoundResult], rows_of: Callable[[FoundResult], Sequence[Row]]
) -> Changes:
    """Every directed metric of `before` beside the same one of `now`."""
    old, new = _newest(before), _newest(now)
    found: list[tuple[Name, Metric, Metric, Difference | None]] = []
    refused = []
    for name, candidates in old.items():
        pair = _same_protocol(candidates, new.get(name, []))
        if pair is None:
            refused.append(_refusal(name, candidates, new.get(name, [])))
            continue
        (a, ours), (b, theirs) = pair
        found.append((name, ours, theirs, _difference(a, ours, b, theirs, rows_of)))
    tested = [d.p_value for _, _, _, d in found if d and d.p_value is not None]
    adjusted = iter(holm(tested).tolist() if tested else [])
    changes = [
        Change(name[1], name[2], ours, theirs, d, None if d is None or d.p_value is None else next(adjusted))
        for name, ours, theirs, d in found
    ]
    return Changes(changes, refused)


Measured = tuple[FoundResult, Metric]


def _newest(found: Sequence[FoundResult]) -> dict[Name, list[Measured]]:
    """The directed metrics of all but yardsticks; of equal protocols the newest."""
    names: dict[Name, list[Measured]] = {}
    for entry in sorted(found, key=lambda e: e.result.created, reverse=True):
        subject = entry.result.subject
        for metric in entry.result.metrics if subject.kind not in REFERENCE_KINDS else []:
            if metric.higher_is_better is None or metric.value is None:
                continue
            known = names.setdefault((subject.kind, subject.name, entry.result.suite, metric.name), [])
            if all(not _equal(entry.result.protocol, other.result.protocol) for other, _ in known):
                known.append((entry, metric))
    return names


def _same_protocol(old: Sequence[Measured], new: Sequence[Measured]) -> tuple[Measured, Measured] | None:
    pairs = ((a, b) for a in old for b in new if _equal(a[0].result.protocol, b[0].result.protocol))
    return next(pairs, None)


def _equal(a: Protocol, b: Protocol) -> bool:
    return not differing_fields([a, b])


def _refusal(name: Name, old: Sequence[Measured], new: Sequence[Measured]) -> str:
    what = f"{name[1]}: {name[3]} ({name[2]})"
    if not new:
        return f"{what} was measured before and is missing now, so nothing is said of it."
    fields = differing_fields([found.result.protocol for found, _ in (old[0], new[0])])
    return f"{what} was measured under another protocol, so it is not compared: {', '.join(fields)} differ."


# ---------------------------------------------------------------------------------------------- differences


def _difference(
    before: FoundResult, old: Metric, now: FoundResult, new: Metric, rows_of: Callable[[FoundResult], Sequence[Row]]
) -> Difference | None:
    """Now minus before: paired where both hold the scores of the same items, else from the two standard errors."""
    ours, theirs = item_scores(new, rows_of(now)), item_scores(old, rows_of(before))
    if ours and theirs and set(ours.scores) == set(theirs.scores):
        return pair_difference(ours, theirs)
    return unpaired_difference(new, old)


def unpaired_difference(new: Metric, old: Metric) -> Difference | None:
    """Difference of two estimates that share no items we know of: z from both standard errors; None without them.

    On shared items this is too wide as a rule, since the spread between items, which pairing removes, stays in.
    """
    errors = [_stderr(new), _stderr(old)]
    if new.value is None or old.value is None or any(e is None for e in errors):
        return None
    value, error = new.value - old.value, math.hypot(*(e or 0.0 for e in errors))
    half = z_quantile(LEVEL) * error
    estimate = Estimate(value, min(new.n, old.n), error, value - half, value + half, LEVEL, "normal, independent")
    if not error:
        why = "neither value has a standard error"
        return Difference(no_interval(value, min(new.n, old.n), LEVEL, why), None if value else 1.0, "unpaired z")
    return Difference(estimate, float(2 * ndtr(-abs(value) / error)), "unpaired z")


def _stderr(entry: Metric) -> float | None:
    """The standard error, or the one that the interval implies where there is none, or 0: of 0 of 5, or 5 of 5.

    There the interval lies on one side of the value, and its longer side is what speaks for an error (as in Newcombe's
    interval of a difference): half the width would make 0 of 5 against 5 of 5 a p-value of 2e-10, where Fisher's is .008.
    """
    if entry.stderr or entry.ci_low is None or entry.ci_high is None:
        return entry.stderr
    if entry.stderr is None or entry.value is None:
        return (entry.ci_high - entry.ci_low) / (2 * z_quantile(entry.ci_level))
    return max(entry.ci_high - entry.value, entry.value - entry.ci_low) / z_quantile(entry.ci_level)


# ---------------------------------------------------------------------------------------------- record


def to_record(found: Changes) -> dict[str, Any]:
    """The changes as JSON-able values, raw and unrounded: changes.json."""
    return {
        "schema_version": 1,
        "level": LEVEL,
        "correction": "Holm",
        "worse": [f"{c.subject}: {c.now.name}" for c in found.worse],
        "refused": found.refused,
        "changes": [
            {
                "subject": c.subject,
                "suite": c.suite,
                "metric": c.now.name,
                "before": c.before.value,
                "now": c.now.value,
                "higher_is_better": c.now.higher_is_better,
                "difference": None if c.difference is None else to_dict(c.difference.estimate),
                "test": "" if c.difference is None else c.difference.test,
                "p_value": None if c.difference is None else c.difference.p_value,
                "p_value_holm": c.corrected,
                "verdict": c.verdict,
            }
            for c in found.changes
        ],
    }
