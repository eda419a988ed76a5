"""For Hugging Face `evaluate`: The unbiased squared MMD with the cubic kernel over all pairs; KID with Inception's features. It may be below 0."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from evaluation.hf_modules import base
from evaluation.images.intervals import kernel_estimate


class KernelDistance(base.TwoSets):
    """The unbiased squared MMD with the cubic kernel over all pairs; KID with Inception's features. It may be below 0."""

    about: ClassVar[str] = __doc__ or ""
    citation_text: ClassVar[str] = "Binkowski et al. 2018, arXiv 1801.01401"
    rows: ClassVar[str] = "features"
    needs_real: ClassVar[bool] = True

    def score(self, generated: np.ndarray, real: np.ndarray) -> dict[str, Any]:
        return base.as_result(kernel_estimate(generated, real))
