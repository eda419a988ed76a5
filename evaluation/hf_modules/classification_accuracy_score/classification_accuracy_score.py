"""For Hugging Face `evaluate`: accuracy on real images of a classifier that is trained on generated ones."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from data.images import ImageSet, image_set
from evaluation.hf_modules import base
from evaluation.images.extractors.classifier import classification_hits
from evaluation.statistics import proportion
from launch.errors import UserError


class ClassificationAccuracyScore(base.TwoSets):
    """The classification accuracy score. A row is a label and the grey values of a square image, 0 to 255, row by row."""

    about: ClassVar[str] = __doc__ or ""
    citation_text: ClassVar[str] = "Ravuri & Vinyals 2019, arXiv 1905.10887"
    rows: ClassVar[str] = "rows of a label and grey values"

    def score(self, generated: np.ndarray, real: np.ndarray, seed: int = 0) -> dict[str, Any]:
        hits = classification_hits(_images(generated, "predictions"), _images(real, "references"), seed)
        return base.as_result(proportion(hits))


def _images(rows: np.ndarray, name: str) -> ImageSet:
    """Rows (N, 1 + S * S) as labelled images (N, 1, S, S)."""
    side = math.isqrt(rows.shape[1] - 1)
    if side * side != rows.shape[1] - 1:
        raise UserError(
            f"{name}: rows of {rows.shape[1]} numbers are no label and a square image; give 1 + S * S numbers"
        )
    pixels = np.clip(np.rint(rows[:, 1:]), 0, 255).astype(np.uint8).reshape(-1, 1, side, side)
    return image_set(pixels, rows[:, 0].astype(np.int64), name)
