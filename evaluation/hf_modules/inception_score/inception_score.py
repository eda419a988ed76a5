"""For Hugging Face `evaluate`: exp E KL(p(y|x) || p(y)) of a classifier's logits; the Inception Score with Inception's."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from evaluation.hf_modules import base
from evaluation.images.intervals import inception_estimate


class InceptionScore(base.TwoSets):
    """exp E KL(p(y|x) || p(y)) of a classifier's logits; the Inception Score with Inception's."""

    about: ClassVar[str] = __doc__ or ""
    citation_text: ClassVar[str] = "Salimans et al. 2016, arXiv 1606.03498"
    rows: ClassVar[str] = "logits"
    needs_real: ClassVar[bool] = False

    def score(self, generated: np.ndarray, real: np.ndarray, splits: int = 1, seed: int = 0) -> dict[str, Any]:
        return base.as_result(inception_estimate(generated, splits, seed))
