"""What `alignkit evaluate deepfake` learns from files and marks: controls that see no pixel, credentials, watermarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.images import ImageSet
from evaluation.deepfake.credentials import read_credentials
from evaluation.deepfake.files import (
    check_encodings,
    encoding_control,
    metadata_control,
    picture_files,
    read_traits,
)
from evaluation.deepfake.perturb import Perturbation
from evaluation.deepfake.protocol import auc_estimate
from evaluation.deepfake.watermark import detect_watermark
from evaluation.schema import Metric, metric
from evaluation.statistics import Estimate, proportion
from launch.errors import UserError

CONTROLS = {
    "auc_format_only": "A detector that sees how the files are encoded and no pixel: must hold .5",
    "auc_metadata_only": "A detector that sees what else is written in the files and no pixel: must hold .5",
}
CLEAN = "none"
"""What no treatment is called among the treatments."""


def file_metrics(name: str, generated: str, real: str) -> list[Metric]:
    """The two controls of the files of a generator against the real ones. UserError where their encodings differ."""
    sources = [picture_files(source) for source in (real, generated)]
    if not all(sources):
        why = "no files to look at: images of one set at least lie in arrays or tables"
        return [metric(key, None, text, higher_is_better=None, note=why) for key, text in CONTROLS.items()]
    theirs, ours = ([read_traits(path) for path in paths] for paths in sources)
    check_encodings(name, ours, theirs)
    contents = [path.read_bytes() for paths in sources for path in paths]
    controls = zip(CONTROLS, (encoding_control, metadata_control), strict=True)
    found = {key: auc_estimate(control(ours, theirs, contents)) for key, control in controls}
    if is_off(found["auc_format_only"]):
        raise UserError(
            f"generators.{name}: how files are encoded tells generated from real ones (AUC "
            f"{found['auc_format_only'].value:.2f} without a pixel), so a detector's number would mean nothing; write both "
            "sets in the same way"
        )
    return [
        metric(key, found[key], CONTROLS[key], higher_is_better=None, bounds=(0, 1)) for key in CONTROLS
    ] + _credentials(sources[1])


def is_off(control: Estimate) -> bool:
    """Whether the interval of a control leaves .5 out."""
    return control.low is not None and control.high is not None and not control.low <= 0.5 <= control.high


def _credentials(paths: Sequence[Path]) -> list[Metric]:
    """The share of generated files with content credentials, where the package that reads them is installed."""
    try:
        found = read_credentials(paths)
    except UserError:
        return []
    return [
        metric(
            "content_credentials",
            proportion(np.array([c.present for c in found])),
            "Share of generated files with a C2PA manifest; of those, `intact` belong to their file and `by_a_model` say "
            "that a model made the picture",
            higher_is_better=None,
            unit="share",
            intact=sum(c.intact for c in found),
            by_a_model=sum(c.by_a_model for c in found),
        )
    ]


# ---------------------------------------------------------------------------------------------- watermarks


Marks = dict[str, dict[str, Estimate]]
"""Shares of images in which a mark is found: set (`REAL`: the real images) -> treatment -> estimate."""
REAL = ""


def watermark_findings(
    key: str,
    real: ImageSet,
    sets: Mapping[str, ImageSet],
    treatments: Sequence[Perturbation],
    beat: Callable[[int], None],
) -> Marks:
    """Look for the mark in all images, as they are and after each treatment."""
    shares: Marks = {}
    for name, images in {REAL: real, **sets}.items():
        shares[name] = {CLEAN: proportion(detect_watermark(images.images, key))}
        for treatment in treatments:
            shares[name][str(treatment)] = proportion(detect_watermark(treatment(images.images), key))
            beat(0)
    return shares
