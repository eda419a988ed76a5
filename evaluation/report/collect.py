"""Find what a report is made of: results.json, provenance.json and metrics.jsonl under folders, and their parents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluation.report.text import short_name
from evaluation.schema import RESULTS_FILE, EvaluationResult, Metric, load
from launch.errors import UserError
from launch.files import read_json, read_jsonl_log

PROVENANCE_FILE = "provenance.json"
METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
"""Evaluations during training: see docs/ppo.md."""
SKIPPED = {"checkpoints", "trackers"}


@dataclass(frozen=True)
class FoundResult:
    """One results.json and the folder that holds it."""

    folder: Path
    result: EvaluationResult


@dataclass(frozen=True)
class FoundStage:
    """One finished run: its folder, provenance and log. `parents` are the indices of the stages it was made from."""

    name: str
    folder: Path
    provenance: dict[str, Any]
    log: list[dict[str, Any]]
    parents: list[int] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sources(self) -> list[str]:
        """Inputs that no stage made: embedded and hub sources, and plain files."""
        return [
            i.get("source") or Path(i["path"]).name for i in self.provenance["inputs"].values() if not _stage_input(i)
        ]


@dataclass(frozen=True)
class Collection:
    """Everything a report shows. Stages come after their parents."""

    results: list[FoundResult]
    stages: list[FoundStage]
    warnings: list[str]


def collect(folders: Sequence[str | Path], leave_out: Path | None = None) -> Collection:
    """Read all results and stages under folders, and the stages that those were made from, wherever they lie.

    `leave_out` (the report's own folder), hidden folders, checkpoints and `*.previous` are not entered.
    """
    results: dict[Path, FoundResult] = {}
    runs: dict[Path, dict[str, Any]] = {}
    for root in map(Path, folders):
        if not root.is_dir():
            raise UserError(f"inputs: {root}: no such folder; give folders that hold runs of alignkit, at any depth")
        for folder in _folders(root.resolve(), leave_out.resolve() if leave_out else None):
            if (folder / RESULTS_FILE).is_file():
                results[folder] = FoundResult(folder, with_short_names(load(folder)))
            if (folder / PROVENANCE_FILE).is_file():
                provenance = _read_provenance(folder)
                if provenance["stage"] != "report":
                    runs[folder] = provenance
    if not results and not runs:
        raise UserError(f"inputs: {', '.join(map(str, folders))}: {_nothing_found(folders, leave_out)}")
    _add_ancestors(runs)
    stages = _in_order(runs)
    ordered = sorted(results.values(), key=lambda r: (r.result.created, str(r.folder)))
    return Collection(ordered, stages, _code_warnings(stages))


def _nothing_found(folders: Sequence[str | Path], leave_out: Path | None) -> str:
    """Why there is nothing to report, and what to do."""
    own = leave_out.resolve() if leave_out else None
    begun = next(
        (p.parent for f in folders for p in sorted(Path(f).rglob("run.json")) if p.parent.resolve() != own), None
    )
    if begun is None:
        return "no run of alignkit is there; run an evaluation first, such as `alignkit evaluate text`"
    return f"no run there is finished, {begun} for one is not; give its command again, which resumes it"


def with_short_names(result: EvaluationResult) -> EvaluationResult:
    """The result with names that fit into a table; they come from folders, models and recipes of any kind."""

    def shortened(entry: Metric) -> Metric:
        baseline = None if entry.baseline is None else short_name(entry.baseline)
        return replace(entry, name=short_name(entry.name), unit=short_name(entry.unit), baseline=baseline)

    slices = [
        replace(p, group=short_name(p.group), name=short_name(p.name), metrics=[shortened(m) for m in p.metrics])
        for p in result.slices
    ]
    subject = replace(result.subject, name=short_name(result.subject.name))
    return replace(result, subject=subject, metrics=[shortened(m) for m in result.metrics], slices=slices)


def _folders(root: Path, leave_out: Path | None) -> Iterator[Path]:
    """The folder and those below it, in name order."""
    if root == leave_out or root.name in SKIPPED or root.name.endswith(".previous"):
        return
    yield root
    for child in sorted(root.iterdir()):
        if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
            yield from _folders(child, leave_out)


def _read_provenance(folder: Path) -> dict[str, Any]:
    content = read_json(folder / PROVENANCE_FILE, remedy="run the stage again")
    missing = [k for k in ("stage", "inputs", "config", "seconds", "content_sha256") if k not in content]
    if missing:
        raise UserError(f"{folder / PROVENANCE_FILE}: '{missing[0]}' is missing; run the stage again")
    return content


def _stage_input(entry: dict[str, Any]) -> bool:
    return "path" in entry and _stage_folder(Path(entry["path"])) is not None


def _stage_folder(path: Path) -> Path | None:
    """The folder of the stage that made a path: the path itself or the nearest folder above it with a provenance."""
    resolved = path.resolve()
    return next((f for f in (resolved, *resolved.parents) if (f / PROVENANCE_FILE).is_file()), None)


def _parents(provenance: dict[str, Any]) -> list[Path]:
    paths = [_stage_folder(Path(i["path"])) for i in provenance["inputs"].values() if "path" in i]
    return list(dict.fromkeys(p for p in paths if p is not None))


def _add_ancestors(runs: dict[Path, dict[str, Any]]) -> None:
    waiting = list(runs.values())
    while waiting:
        for folder in _parents(waiting.pop()):
            if folder not in runs:
                runs[folder] = _read_provenance(folder)
                waiting.append(runs[folder])


def _in_order(runs: dict[Path, dict[str, Any]]) -> list[FoundStage]:
    """Parents first; among the free ones the earlier started first."""
    left = dict(sorted(runs.items(), key=lambda item: (item[1].get("started", 0.0), str(item[0]))))
    index: dict[Path, int] = {}
    stages: list[FoundStage] = []
    while left:
        free = [f for f, p in left.items() if not any(q in left and q != f for q in _parents(p))]
        folder = (free or list(left))[0]  # stages cannot make a circle, but edited records can
        provenance = left.pop(folder)
        parents = [index[p] for p in _parents(provenance) if p in index]
        index[folder] = len(stages)
        log, evaluations = (read_jsonl_log(folder / name) for name in (METRICS_FILE, EVALUATIONS_FILE))
        stages.append(FoundStage(folder.name, folder, provenance, log, parents, evaluations))
    return stages


def _code_warnings(stages: Sequence[FoundStage]) -> list[str]:
    """Warnings about code: changes that were not committed, and more than one version."""
    codes = [(stage.name, stage.provenance.get("code") or {}) for stage in stages]
    commits = sorted({str(code["commit"])[:10] for _, code in codes if code.get("commit")})
    dirty = [name for name, code in codes if code.get("dirty")]
    warnings = []
    if len(commits) > 1:
        warnings.append(f"The stages ran with different versions of the code: {', '.join(commits)}.")
    if dirty:
        named = "all stages" if len(dirty) == len(stages) > 1 else ", ".join(dirty)
        warnings.append(f"Run from code with uncommitted changes: {named}.")
    return warnings
