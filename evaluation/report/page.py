"""The page: one self-contained HTML file. No request, everything escaped; its own script only, allowed by its hash."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from evaluation.report.categories import category_views, safety_plane
from evaluation.report.charts import POINTS
from evaluation.report.collect import Collection, FoundResult
from evaluation.report.commands import origin_of
from evaluation.report.differences import ChangesView, baseline_view
from evaluation.report.leaderboard import Leaderboard
from evaluation.report.media import curves_of, pictures_of
from evaluation.report.names import short_source
from evaluation.report.overoptimisation import overoptimisation_of
from evaluation.report.paired import PairedBoard
from evaluation.report.robustness import robustness_views
from evaluation.report.samples import SampleSection
from evaluation.report.stages import code_of, graph_of, stage_view
from evaluation.report.tables import comparison_rows, evaluation_view, has_matrix, matrix_of
from evaluation.report.text import decimals_for, format_number, format_seconds, shorten, visible
from evaluation.report.viewer import SampleSet, viewer_data
from evaluation.report.views import COLORS, BoardView, Sources, board_view, unit_of

HERE = Path(__file__).parent
SCRIPTS = ("dom", "boards", "differences", "viewer", "start")


@dataclass(frozen=True)
class PageParts:
    """What a page has beside its leaderboards; all of it may be absent."""

    samples: SampleSection | None = None
    paired: Sequence[PairedBoard] = ()
    """One for each leaderboard, in their order."""
    baseline: str = ""
    """The entry that differences are shown from at first."""
    sets: Sequence[SampleSet] = ()
    changes: ChangesView | None = None


def render_page(
    collection: Collection, boards: Sequence[Leaderboard], warnings: Sequence[str], parts: PageParts, title: str
) -> str:
    """The whole page as HTML text."""
    style, script = (Markup(text) for text in (_read("style.css"), page_script()))
    colors = assign_colors(boards)
    anchors = {id(found.result): f"evaluation-{i}" for i, found in enumerate(collection.results)}
    paired = list(parts.paired) or [PairedBoard(board.title) for board in boards]
    matrices = [matrix_of(found.result) for found in collection.results if has_matrix(found.result)]
    detectors = {found.result.subject.name for found in collection.results if has_matrix(found.result)}
    pairs = zip(boards, paired, strict=True)
    shown = [(b, p) for b, p in pairs if {row.name for row in b.rows} != detectors]  # the matrix says more
    views = [board_view(board, colors, Sources(found, anchors)) for board, found in shown]
    colored = [(stage, colors.get(stage.name, (i + len(colors)) % COLORS)) for i, stage in enumerate(collection.stages)]
    context = {
        "title": title,
        "style": style,
        "style_hash": policy_hash(style),
        "script": script,
        "script_hash": policy_hash(script),
        "lede": [view.sentence for view in views if view.sentence],
        "facts": facts(collection),
        "warnings": list(dict.fromkeys(warnings)),
        "boards": views,
        "level": level_of(collection.results),
        "comparisons": comparison_rows(boards),
        "differences": [v for b, p in shown if (v := baseline_view(b, p, parts.baseline))],
        "changes": parts.changes,
        "safety": safety_plane(boards, colors),
        "categories": [view for board, _ in shown for view in category_views(board, colors)],
        "pictures": pictures_of(collection.results),
        "matrices": matrices,
        "robustness": robustness_views([found.result for found in collection.results], colors),
        "samples": parts.samples,
        "viewer": viewer_data(parts.sets) if parts.sets else None,
        "curves": [c for stage, color in colored if (c := curves_of(stage, color))],
        "overoptimisation": [o for stage, color in colored if (o := overoptimisation_of(stage, color))],
        "points": POINTS,
        "stages": [stage_view(i, stage, collection.stages) for i, stage in enumerate(collection.stages)],
        "graph": graph_of(collection.stages),
        "evaluations": [
            evaluation_view(found.result, anchors[id(found.result)], origin_of(found, collection.stages))
            for found in collection.results
        ],
    }
    context["contents"] = contents(context, views)
    return environment().get_template("page.html").render(context)


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def page_script() -> str:
    """The page's script: its parts one after the other, in a scope of their own."""
    parts = "\n".join(_read(f"scripts/{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();'


def policy_hash(text: str) -> str:
    """The hash by which a content security policy allows this text and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def embedded_json(value: Any) -> Markup:
    """JSON for a script element: no character in it can end the element or begin markup. Texts are made visible before."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def environment() -> jinja2.Environment:
    """Jinja with everything escaped, invisible characters shown, and no name left undefined."""

    def show(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible(shorten(str(value)))

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, finalize=show
    )
    found.filters |= {
        "number": format_number,
        "whole": lambda n: format_number(n, 0),
        "three": lambda v: format_number(v, max(0, decimals_for(None, v) - 1)),
        "unit": unit_of,
        "source": short_source,
        "breakable": breakable,
        "json": embedded_json,
        "oneline": lambda text: " ".join(text.split())[:160],
    }
    return found


def breakable(name: str) -> Markup:
    """A metric's name that may break after its underscores; escaped."""
    return Markup("_<wbr>").join(visible(name).split("_"))


def assign_colors(boards: Iterable[Leaderboard]) -> dict[str, int]:
    """One colour for each subject, the same in every chart."""
    names = dict.fromkeys(row.name for board in boards for row in board.rows)
    return {name: index % COLORS for index, name in enumerate(names)}


def contents(context: dict[str, Any], views: Sequence[BoardView]) -> list[tuple[str, str]]:
    """(fragment, name) of every section that the page has."""
    entries = [("warnings", "Read this first")] if context["warnings"] else []
    entries += [("changes", "Changes")] if context["changes"] else []
    entries += [(view.anchor, view.title) for view in views]
    entries += [("safety", "Safety")] if context["safety"] else []
    entries += [("categories", "By category")] if context["categories"] else []
    entries += [("pictures", "Generated images")] if context["pictures"] else []
    entries += [(m.anchor, m.title) for m in context["matrices"]]
    entries += [("robustness", "Robustness")] if context["robustness"] else []
    compared = context["comparisons"] or context["differences"]
    entries += [("comparisons", "Paired comparisons")] if compared else []
    entries += [("samples", "Samples")] if context["samples"] or context["viewer"] else []
    for key, name in (
        ("curves", "Training"),
        ("stages", "Lineage"),
        ("evaluations", "Every number"),
    ):
        if context[key]:
            entries.append(({"stages": "lineage", "evaluations": "numbers"}.get(key, key), name))
    return entries


# ---------------------------------------------------------------------------------------------- facts


def facts(collection: Collection) -> list[tuple[str, str]]:
    """When, how long, which code, on what: from the provenance of the stages, or from the results without any."""
    records = [stage.provenance for stage in collection.stages]
    found = []
    if records:
        starts = [r["started"] for r in records if r.get("started")]
        if starts:
            found.append(("Started", _date(min(starts))))
        found.append(("Stages", f"{len(records)}, {format_seconds(sum(r['seconds'] for r in records))} of work"))
        found.append(("Code", _codes(records)))
    results = [entry.result for entry in collection.results]
    found.append(("Evaluations", str(len(results))))
    hardware = [h for h in [*(r.get("hardware") for r in records), *(r.hardware for r in results)] if h]
    found.append(("Machine", _join(map(_machine, hardware))))
    versions = [v for v in [*(r.get("versions") for r in records), *(r.versions for r in results)] if v]
    found.append(("Software", _join(_software(v) for v in versions)))
    return [(name, value) for name, value in found if value]


def _codes(records: Sequence[dict[str, Any]]) -> str:
    """The versions of the code; of more than two the first, and how many others."""
    codes = list(dict.fromkeys(filter(None, map(code_of, records))))
    return "; ".join(codes) if len(codes) <= 2 else f"{codes[0]}, and {len(codes) - 1} other versions"


def _join(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(v for v in values if v))


def _date(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _machine(hardware: dict[str, Any]) -> str:
    gpus: list[str] = hardware.get("gpus") or []
    counted = ", ".join(f"{gpus.count(g)} × {g}" for g in dict.fromkeys(gpus))
    memory = hardware.get("memory_gib")
    parts = [str(hardware.get("processor", "")), f"{hardware.get('cores')} cores", f"{memory} GiB" if memory else ""]
    return ", ".join(p for p in [*parts, counted] if p)


def _software(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers") if name in versions)


def level_of(results: Sequence[FoundResult]) -> str:
    """The confidence level of the intervals, such as 95 %."""
    levels = sorted({m.ci_level for found in results for m in found.result.metrics if m.ci_low is not None})
    return " and ".join(f"{level:.0%}".replace("%", " %") for level in levels) or "95 %"
