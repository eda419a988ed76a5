"""For Hugging Face `evaluate`: 1000 times the squared MMD with a Gaussian kernel of sigma 10 of vectors scaled to length 1; CMMD with CLIP's embeddings."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from evaluation.hf_modules import base
from evaluation.images.intervals import cmmd_estimate


class Cmmd(base.TwoSets):
    """1000 times the squared MMD with a Gaussian kernel of sigma 10 of vectors scaled to length 1; CMMD with CLIP's embeddings."""

    about: ClassVar[str] = __doc__ or ""
    citation_text: ClassVar[str] = "Jayasumana et al. 2024, arXiv 2401.09603"
    rows: ClassVar[str] = "features"
    needs_real: ClassVar[bool] = True

    def score(self, generated: np.ndarray, real: np.ndarray) -> dict[str, Any]:
        return base.as_result(cmmd_estimate(generated, real))
