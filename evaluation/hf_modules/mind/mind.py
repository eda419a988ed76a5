"""For Hugging Face `evaluate`: The sliced squared Wasserstein distance times 3 D; the Monge Inception Distance with Inception's features."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from evaluation.hf_modules import base
from evaluation.images.intervals import mind_estimate


class Mind(base.TwoSets):
    """The sliced squared Wasserstein distance times 3 D; the Monge Inception Distance with Inception's features."""

    about: ClassVar[str] = __doc__ or ""
    citation_text: ClassVar[str] = "Berthet et al. 2026, arXiv 2605.06797"
    rows: ClassVar[str] = "features"
    needs_real: ClassVar[bool] = True

    def score(self, generated: np.ndarray, real: np.ndarray, seed: int = 0, directions: int = 1000) -> dict[str, Any]:
        return base.as_result(mind_estimate(generated, real, seed, directions=directions))
