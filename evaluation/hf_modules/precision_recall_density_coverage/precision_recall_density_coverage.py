"""For Hugging Face `evaluate`: precision, recall, density and coverage of two sets of feature vectors."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from evaluation.hf_modules import base
from evaluation.images.intervals import manifold_estimates


class PrecisionRecallDensityCoverage(base.TwoSets):
    """Improved precision and recall, density and coverage by k nearest neighbours; one result for each of the four."""

    about: ClassVar[str] = __doc__ or ""
    citation_text: ClassVar[str] = "Kynkäänniemi et al. 2019, arXiv 1904.06991; Naeem et al. 2020, arXiv 2002.09797"

    def score(self, generated: np.ndarray, real: np.ndarray, k: int = 3, seed: int = 0) -> dict[str, Any]:
        _, estimates = manifold_estimates(generated, real, seed, k)
        return {name: base.as_result(estimate) for name, estimate in estimates.items()}
