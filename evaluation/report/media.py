"""Pictures and training curves of a report, ready for the template."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from evaluation.report.charts import Curve, curve
from evaluation.report.collect import FoundResult, FoundStage
from evaluation.schema import EvaluationResult

LARGEST_PICTURE = 2_000_000
"""Bytes of a picture that a page holds."""

# ---------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Pictures:
    """The image grid of one result, and some of its images above the nearest ones of another set, as data URIs.

    `compared` says which set that is, or why there is none.
    """

    name: str
    reference: bool
    grid: Markup
    neighbours: Markup
    caption: str
    compared: str


def pictures_of(found: Sequence[FoundResult]) -> list[Pictures]:
    """The grids beside the results of image sets, in the order of the results."""
    shown = []
    for entry in found:
        if (entry.folder / "grid.png").is_file():
            kind = entry.result.subject.kind
            caption = f"{entry.result.metrics[0].n:,} images measured; the first 64 are shown"
            grid, neighbours = (data_uri(entry.folder / name) for name in ("grid.png", "neighbours.png"))
            compared = _compared(entry.result, bool(neighbours))
            shown.append(Pictures(entry.result.subject.name, kind == "images", grid, neighbours, caption, compared))
    return shown


def _compared(result: EvaluationResult, shown: bool) -> str:
    """What the lower row of the neighbours holds: training images only where the result says that it compared with them."""
    known = next((m for m in result.metrics if m.name.startswith("training_copies_") and "training" in m.extra), None)
    if known is not None:
        return (
            f"The twelve images that are nearest to a training image, above that image of {known.extra['training']}; of the "
            f"whole set {known.extra.get('exact_copies')} are exact copies"
        )
    unknown = "The training images are not known, so no copies of them are shown"
    return f"{unknown}: below are the nearest images of the reference, which is another set" if shown else unknown


def data_uri(path: Path) -> Markup:
    """A PNG file as a data URI, which needs no escaping; empty when it is absent, too large, or no PNG."""
    if not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
        return Markup("")
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n"):
        return Markup("")
    return Markup("data:image/png;base64,") + base64.b64encode(content).decode()


# ---------------------------------------------------------------------------------------------- curves

# Names of logged numbers, the telling ones first; those below are shown, the others are folded away.
TELLING = [
    r"(train_)?loss|(train|loss)/(loss|total|nll)",
    r"eval_loss|heldout/.*|.*bits_per_byte|eval/(loss|gold_reward|win_rate)",
    r"reward/score|reward|rewards/margins",
    r"kl/k1|kl",
    r".*accurac(y|ies)",
    r"(policy/)?entropy",
    r"(rollout/)?(mean_)?length",
    r".*missing_eos_rate",
    r"policy/clip_fraction|clip_?frac(tion)?",
    r".*explained_variance",
    r"loss/.*|.*[_/]loss",
]
_TELLING = [re.compile(pattern) for pattern in TELLING]
SHOWN_CURVES = 8


@dataclass(frozen=True)
class StageCurves:
    """The curves of one stage: those shown and those folded away."""

    name: str
    color: int
    main: list[Curve]
    more: list[Curve]


def curves_of(stage: FoundStage, color: int) -> StageCurves | None:
    """The curves of a stage's log; None without any. Names that begin with `perf/` depend on the machine: folded away.

    A step that was made again after a roll-back counts as it was made last.
    """
    series: dict[str, dict[int, float]] = {}
    for row in stage.log:
        for name, value in row.items():
            number = _number(value)
            if name != "step" and number is not None:
                values = series.setdefault(name, {})
                values[int(row.get("step", len(values)))] = number
    found = (curve(name, list(values), list(values.values()), color) for name, values in series.items())
    curves = [c for c in found if c]
    if not curves:
        return None
    curves.sort(key=lambda c: (_telling(c.name), c.name))
    count = sum(_telling(c.name) < len(_TELLING) for c in curves)
    cut = min(count or SHOWN_CURVES, SHOWN_CURVES)
    return StageCurves(stage.name, color, curves[:cut], curves[cut:])


def _telling(name: str) -> int:
    if name.startswith("perf/"):
        return len(_TELLING) + 1
    return next((i for i, pattern in enumerate(_TELLING) if pattern.fullmatch(name)), len(_TELLING))


def _number(value: object) -> float | None:
    """A logged value; NaN and infinity are logged as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None
