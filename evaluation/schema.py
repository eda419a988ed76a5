"""The result of one evaluation: typed, versioned, one `results.json` per evaluation, the only input of a report.

The vocabulary follows lm-evaluation-harness and Every Eval Ever (score, uncertainty with its method, number of
samples, a hashed file of per-sample rows). A number that is undefined is None and says why in its `note`; NaN and
infinity are refused, both when written and when read.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from evaluation.options import SCHEMA_VERSION
from evaluation.statistics import Difference, Estimate
from launch.config import build, to_dict
from launch.errors import UserError
from launch.files import read_json, sha256_file, write_atomic, write_json
from launch.provenance import check_unchanged

RESULTS_FILE = "results.json"
SAMPLES_FILE = "samples.jsonl"
Bounds = tuple[float | None, float | None]
"""The smallest and the largest value that there can be; None for an end that there is not."""
UNIT_BOUNDS: dict[str, Bounds] = {
    "share": (0.0, 1.0),
    "probability": (0.0, 1.0),
    "%": (0.0, 100.0),
    "tokens": (0.0, None),
    "characters": (0.0, None),
    "bits/byte": (0.0, None),
}

SubjectKind = Literal["language model", "reward model", "image generator", "detector", "completions", "images", "judge"]


@dataclass(frozen=True)
class Comparison:
    """How a metric differs from the same metric of a baseline, on the same items."""

    baseline: str
    difference: float
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    test: str = ""
    n: int = 0
    ci_level: float = 0.95
    ci_method: str = ""
    stderr: float | None = None

    @classmethod
    def of(cls, baseline: str, difference: Difference) -> Comparison:
        """The comparison that a paired difference makes, with its test and the method of its interval."""
        d = difference.estimate
        return cls(
            baseline,
            d.value,
            d.low,
            d.high,
            difference.p_value,
            difference.test,
            d.n,
            ci_level=d.level,
            ci_method=d.method,
            stderr=d.stderr,
        )


@dataclass(frozen=True)
class Metric:
    """One number that can be defended: its n, interval, method, unit, direction and meaning.

    `n` counts independent units (documents, prompts, images). `higher_is_better` is None where neither is.
    """

    name: str
    value: float | None
    n: int
    ci_low: float | None = None
    ci_high: float | None = None
    ci_level: float = 0.95
    ci_method: str = ""
    stderr: float | None = None
    higher_is_better: bool | None = None
    unit: str = ""
    description: str = ""
    baseline: str | None = None
    comparison: Comparison | None = None
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def bounds(self) -> Bounds:
        """The smallest and the largest value that there can be: those of `extra`, else the unit's."""
        low, high = self.extra.get("bounds", UNIT_BOUNDS.get(self.unit, (None, None)))
        return None if low is None else float(low), None if high is None else float(high)

    def check(self) -> None:
        """ValueError naming the field that is missing, not finite or out of order."""
        if not self.name:
            raise ValueError("name: is empty; give the metric a name")
        if self.n < 0:
            raise ValueError(f"n: {self.n} is negative; count the units behind '{self.name}'")
        if self.value is None and not self.note:
            raise ValueError(f"note: '{self.name}' has no value; say why in its note")
        if (self.ci_low is None) != (self.ci_high is None):
            raise ValueError(f"ci_low: '{self.name}' has one limit only; give both or none")
        if self.ci_low is not None and self.ci_high is not None:
            if not self.ci_method:
                raise ValueError(f"ci_method: '{self.name}' has an interval without its method; name it")
            if self.ci_low > self.ci_high:
                raise ValueError(f"ci_low: '{self.name}' has {self.ci_low} above ci_high {self.ci_high}; swap them")
        if self.comparison and self.comparison.ci_low is not None and not self.comparison.ci_method:
            raise ValueError(f"comparison.ci_method: '{self.name}' has an interval without its method; name it")


def metric(
    name: str,
    estimate: Estimate | None,
    description: str,
    *,
    higher_is_better: bool | None,
    unit: str = "",
    baseline: str | None = None,
    difference: Difference | None = None,
    note: str = "",
    **extra: Any,
) -> Metric:
    """A Metric from an estimate; None is an undefined number, which needs a `note`. `difference` needs `baseline`.

    What a reader of the number may need stands in `extra`; `bounds` there are the metric's where its unit's are others.
    """
    comparison = None if difference is None else Comparison.of(baseline or "", difference)
    found = Metric(
        name,
        None,
        0,
        higher_is_better=higher_is_better,
        unit=unit,
        description=description,
        baseline=baseline,
        comparison=comparison,
        note=note,
        extra=extra,
    )
    return found if estimate is None else with_estimate(found, estimate)


def with_estimate(entry: Metric, estimate: Estimate) -> Metric:
    """The metric with the value, n, interval and stderr of an estimate; the limits end where the metric does."""
    least, most = entry.bounds
    low, high = estimate.low, estimate.high
    if low is not None and least is not None and estimate.value >= least:
        low = max(low, least)
    if high is not None and most is not None and estimate.value <= most:
        high = min(high, most)
    return replace(
        entry,
        value=estimate.value,
        n=estimate.n,
        ci_low=low,
        ci_high=high,
        ci_level=estimate.level,
        ci_method=estimate.method,
        stderr=estimate.stderr,
    )


@dataclass(frozen=True)
class Slice:
    """The metrics of one part of the items: `group` is what divides them ("category"), `name` which part ("chat")."""

    group: str
    name: str
    metrics: list[Metric]


@dataclass(frozen=True)
class Subject:
    """What was evaluated: its display name, kind, place, content hash and the inputs that it was made from."""

    name: str
    kind: SubjectKind
    path: str = ""
    sha256: str = ""
    parents: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """The model whose scores decide, and its content hash."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Protocol:
    """The settings that define the numbers: two results may be compared when their protocols are equal."""

    dataset: str
    dataset_sha256: str
    n_items: int
    split: str = ""
    decoding: dict[str, Any] = field(default_factory=dict)
    template: str = ""
    judge: Judge | None = None
    baseline: str = ""
    seeds: list[int] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """The file of per-sample rows beside results.json, its hash and its number of rows."""

    file: str
    sha256: str
    rows: int


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _is_date(text: str) -> bool:
    """Whether a text is a date of ISO 8601 that lies on the machine's clock (its seconds since 1970 are exported)."""
    try:
        datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return False
    return True


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation of one subject. `notes` are caveats that a report must show beside the numbers.

    `resolution`: sentences with the smallest differences that its items can resolve (`evaluation/resolution.py`).
    """

    suite: str
    subject: Subject
    protocol: Protocol
    metrics: list[Metric]
    slices: list[Slice] = field(default_factory=list)
    samples: Samples | None = None
    notes: list[str] = field(default_factory=list)
    resolution: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = field(default_factory=_now)
    schema_version: int = SCHEMA_VERSION

    def check(self) -> None:
        """ValueError naming the key of the first fault."""
        if not self.metrics:
            raise ValueError("metrics: is empty; an evaluation has at least one metric")
        names = [m.name for m in self.metrics]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"metrics: '{doubled[0]}' occurs twice; give each metric its own name")
        for index, entry in enumerate(self.metrics):
            _check_metric(entry, f"metrics[{index}]")
        for s, part in enumerate(self.slices):
            for index, entry in enumerate(part.metrics):
                _check_metric(entry, f"slices[{s}].metrics[{index}]")
        if fault := _first_not_finite(to_dict(self)):
            raise ValueError(f"{fault}: is not finite; leave the value out and say why in a note")
        if not _is_date(self.created):
            raise ValueError(f"created: '{self.created}' is no date; write it as in 2026-01-31T12:00:00+00:00")

    def metric(self, name: str) -> Metric:
        """The metric of a name; KeyError lists the names there are."""
        for entry in self.metrics:
            if entry.name == name:
                return entry
        raise KeyError(f"no metric '{name}'; there are {', '.join(m.name for m in self.metrics)}")

    def summary(self) -> dict[str, Any]:
        """name -> value, with the limits as name_ci_low and name_ci_high: what a stage returns."""
        values: dict[str, Any] = {}
        for entry in self.metrics:
            values[entry.name] = entry.value
            if entry.ci_low is not None:
                values |= {f"{entry.name}_ci_low": entry.ci_low, f"{entry.name}_ci_high": entry.ci_high}
        return values

    def save(self, path: str | Path) -> Path:
        """Write the result atomically; `path` is the file, or the folder that gets results.json. Returns the file."""
        self.check()
        target = Path(path)
        target = target / RESULTS_FILE if target.is_dir() or target.suffix != ".json" else target
        write_json(target, to_dict(self))
        return target


def _check_metric(entry: Metric, key: str) -> None:
    try:
        entry.check()
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None


def _first_not_finite(node: Any, key: str = "") -> str | None:
    """The key of the first NaN or infinity in nested JSON values, or None."""
    if isinstance(node, float) and not math.isfinite(node):
        return key
    entries: Iterable[tuple[str, Any]] = ()
    if isinstance(node, dict):
        entries = ((f"{key}.{name}" if key else str(name), value) for name, value in node.items())
    elif isinstance(node, (list, tuple)):
        entries = ((f"{key}[{index}]", value) for index, value in enumerate(node))
    for name, value in entries:
        if fault := _first_not_finite(value, name):
            return fault
    return None


def load(path: str | Path) -> EvaluationResult:
    """The result in a file, or in the results.json of a folder. UserError names the file, the key and the remedy.

    Also when a file of its folder is no longer what the evaluation wrote.
    """
    path = Path(path)
    path = path / RESULTS_FILE if path.is_dir() else path
    check_unchanged("results", str(path.parent))
    content = read_json(path, remedy="run the evaluation that writes it again")
    if not isinstance(content, dict) or "schema_version" not in content:
        raise UserError(f"{path}: schema_version is missing, so this is no evaluation result; give a results.json")
    version = content["schema_version"]
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        remedy = (
            "it was written by a newer alignkit; upgrade this one"
            if newer
            else "it was written by an earlier alignkit; run the evaluation again, with --overwrite true"
        )
        raise UserError(f"{path}: schema_version {version!r} is not {SCHEMA_VERSION}; {remedy}")
    return build(EvaluationResult, content, str(path))


def write_samples(folder: str | Path, rows: Iterable[dict[str, Any]], name: str = SAMPLES_FILE) -> Samples:
    """Write per-sample rows as JSONL beside the result, atomically. ValueError for NaN and infinity."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False, sort_keys=True) for row in rows]
    path = Path(folder) / name
    write_atomic(path, "".join(line + "\n" for line in lines))
    return Samples(name, sha256_file(path), len(lines))


def read_samples(results: str | Path, samples: Samples) -> list[dict[str, Any]]:
    """The per-sample rows that a result (its file or folder) names; UserError when they are gone or were changed."""
    folder = Path(results) if Path(results).is_dir() else Path(results).parent
    path = folder / samples.file
    if not path.is_file():
        raise UserError(f"{path}: no such file; restore it beside its results.json or run the evaluation again")
    # not splitlines(): it also cuts at U+2028 and U+0085, which JSON allows inside a string
    text = path.read_text(encoding="utf-8", errors="replace")
    if sha256_file(path) != samples.sha256:
        whole = text.count("\n")
        what = f"is truncated, with {whole} of its {samples.rows} rows whole" if whole < samples.rows else "has changed"
        raise UserError(f"{path}: {what} since its results.json was written; run the evaluation again")
    return [json.loads(line) for line in text.split("\n") if line]
