"""The lineage of a report: every stage with what it was made from, and the graph of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from markupsafe import Markup

from evaluation.report.charts import lineage
from evaluation.report.collect import FoundStage
from evaluation.report.commands import command_of
from evaluation.report.text import format_seconds, visible

NOT_DRAWN = ("evaluate", "report")
"""Commands whose runs are listed in the lineage and not drawn in its graph."""


def code_of(record: dict[str, Any]) -> str:
    version = record.get("versions", {}).get("alignkit", "")
    code = record.get("code") or {}
    commit = f" ({code['commit'][:10]}{', with changes' if code.get('dirty') else ''})" if code.get("commit") else ""
    return f"alignkit {version}{commit}".strip()


@dataclass(frozen=True)
class StageView:
    """One stage of the lineage."""

    anchor: str
    name: str
    command: str
    time: str
    pairs: list[tuple[str, str]]
    config: str
    again: str
    """The command that does it again."""


def stage_view(index: int, stage: FoundStage, stages: Sequence[FoundStage]) -> StageView:
    """What a stage was made from, with what, how long, and its content hash."""
    record = stage.provenance
    made_from = [stages[p].name for p in stage.parents] + stage.sources
    pairs = [
        ("made from", ", ".join(made_from)),
        ("content sha256", record["content_sha256"]),
        ("folder", str(stage.folder)),
        ("seed", str(record["config"].get("seed", ""))),
        (
            "processes",
            f"{record.get('world', 1)}" + (f", ZeRO {record['zero_stage']}" if record.get("zero_stage") else ""),
        ),
        ("precision", str(record.get("precision", ""))),
        ("peak memory", f"{record['peak_memory_mib']} MiB" if record.get("peak_memory_mib") else ""),
        ("code", code_of(record)),
        *((f"input {name}", entry["sha256"]) for name, entry in record["inputs"].items()),
    ]
    config = yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True).strip()
    shown = [(name, value) for name, value in pairs if value]
    time, again = format_seconds(record["seconds"]), command_of(record)
    return StageView(f"stage-{index}", stage.name, record["stage"], time, shown, config, again)


def graph_of(stages: Sequence[FoundStage]) -> Markup:
    """The graph of the stages that make something; evaluations would only crowd it."""
    drawn = [i for i, s in enumerate(stages) if not s.provenance["stage"].startswith(NOT_DRAWN)]
    place = {index: position for position, index in enumerate(drawn)}
    labels = [
        (f"stage-{i}", visible(stages[i].name)[:20], f"{stages[i].provenance['stage']}, {_time(stages[i])}"[:28])
        for i in drawn
    ]
    return lineage(labels, [[place[p] for p in stages[i].parents if p in place] for i in drawn])


def _time(stage: FoundStage) -> str:
    return format_seconds(stage.provenance["seconds"])
