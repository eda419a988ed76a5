"""Where a number comes from, down to the command: the run that wrote its result, and the commands of all runs before it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.report.collect import FoundResult, FoundStage


@dataclass(frozen=True)
class Origin:
    """The stage that wrote a result (its place among the stages), its command, and those of the stages before it, in order."""

    stage: int
    command: str
    before: list[tuple[int, str]]


def origin_of(found: FoundResult, stages: Sequence[FoundStage]) -> Origin | None:
    """Where a result comes from; None when its run left no provenance."""
    index = next((i for i, s in enumerate(stages) if found.folder == s.folder), None)
    if index is None:  # suites that measure several subjects write each into a folder below their own
        index = next((i for i, s in enumerate(stages) if _inside(found.folder, s.folder)), None)
    if index is None:
        return None
    before = sorted(_ancestors(index, stages) - {index})
    return Origin(index, command_of(stages[index].provenance), [(i, stages[i].name) for i in before])


def _inside(folder: Path, of: Path) -> bool:
    return of in folder.parents


def _ancestors(index: int, stages: Sequence[FoundStage]) -> set[int]:
    found, waiting = {index}, [index]
    while waiting:
        for parent in stages[waiting.pop()].parents:
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def command_of(provenance: dict[str, Any]) -> str:
    """The command that does a stage again: all fields of its config written out, so that no later default changes it."""
    words = ["alignkit", *str(provenance["stage"]).split()]
    for key, value in _fields(provenance["config"]):
        words += [f"--{key}", value]
    return shlex.join(words)


def _fields(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _fields(value, f"{key}.")
        elif isinstance(value, bool):
            yield key, str(value).lower()
        elif isinstance(value, (list, tuple)):
            if value:
                yield key, ",".join(map(str, value))
        elif value is not None and value != "":
            yield key, str(value)
