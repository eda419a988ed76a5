"""For Hugging Face `evaluate`: The Fréchet distance extrapolated to infinitely many images of both sets."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from evaluation.hf_modules import base
from evaluation.images.intervals import extrapolated_estimate


class ExtrapolatedFrechetDistance(base.TwoSets):
    """The Fréchet distance extrapolated to infinitely many images of both sets."""

    about: ClassVar[str] = __doc__ or ""
    citation_text: ClassVar[str] = "Chong & Forsyth 2020, arXiv 1911.07023"
    rows: ClassVar[str] = "features"
    needs_real: ClassVar[bool] = True

    def score(self, generated: np.ndarray, real: np.ndarray, seed: int = 0) -> dict[str, Any]:
        return base.as_result(extrapolated_estimate(generated, real, seed)[1])
