"""Image metrics on real digits and on images of eight generators; see benchmarks/evaluation.py.

The table of docs/evaluation_images.md: 256 images by each generator against 2,000 MNIST test images, in the features of a
classifier of 3,000 training images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import DATA, alignkit
from benchmarks.image_data import TEST_DIGITS, images_by_generator, save_images
from data.images import load_images
from evaluation.schema import load
from evaluation.suites.images import PIXELS, REAL
from launch.files import folder_name

METRICS = ("fd", "extrapolated_fd", "md", "precision", "coverage")
SHOWN = ("value", "ci_low", "ci_high", "ci_method")


def measure_generators(quick: bool) -> dict[str, Any]:
    """The metrics of every generator and of the two yardsticks."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        files = images_by_generator(work / "images")
        if quick:
            files = {"GAN": files["GAN"]}
        train = load_images(str(DATA / "mnist")).sample(300 if quick else 3000, 0)
        assert train.labels is not None
        labelled = save_images(work / "train.npz", train.images, labels=np.asarray(train.labels))
        words = [word for generator, file in files.items() for word in (f"--generators.{generator}", file)]
        words += ["--reference", TEST_DIGITS, "--extractor", "classifier", "--classifier_data", labelled]
        alignkit("evaluate", "images", *words, "--max_images", 2000, "--output_dir", work / "out")
        return {"subjects": {subject: _row(work / "out" / folder_name(subject)) for subject in (REAL, *files, PIXELS)}}


def _row(folder: Path) -> dict[str, Any]:
    result, found = load(folder), {}
    for name in METRICS:
        entry = next(m for m in result.metrics if m.name.startswith(f"{name}_classifier@"))
        found[entry.name] = {key: getattr(entry, key) for key in SHOWN}
    return found


COMPARISONS: dict[str, Callable[[bool], dict[str, Any]]] = {"generators": measure_generators}


def describe(name: str, result: dict[str, Any]) -> str:
    """A line of a Markdown table for each subject."""
    lines = []
    for subject, metrics in result["subjects"].items():
        cells = [f"{m['value']:.3g} [{m['ci_low']:.3g}, {m['ci_high']:.3g}]" for m in metrics.values()]
        lines.append(f"| {subject} | {' | '.join(cells)} |")
    return "\n".join(lines)
