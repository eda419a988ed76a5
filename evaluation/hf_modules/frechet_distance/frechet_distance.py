"""For Hugging Face `evaluate`: The squared Fréchet distance of two sets of feature vectors; FID with Inception's 2048 features. Never negative, also for fewer samples than dimensions."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from evaluation.hf_modules import base
from evaluation.images.intervals import frechet_estimate


class FrechetDistance(base.TwoSets):
    """The squared Fréchet distance of two sets of feature vectors; FID with Inception's 2048 features. Never negative, also for fewer samples than dimensions."""

    about: ClassVar[str] = __doc__ or ""
    citation_text: ClassVar[str] = "Heusel et al. 2017, arXiv 1706.08500"
    rows: ClassVar[str] = "features"
    needs_real: ClassVar[bool] = True

    def score(self, generated: np.ndarray, real: np.ndarray, seed: int = 0) -> dict[str, Any]:
        return base.as_result(frechet_estimate(generated, real, seed))
