"""What a detector is to the protocol, and the linear head that two of them share.

Images are uint8 (N, C, H, W); a score is a probability in [0, 1] that an image was generated, both kinds being as
likely. A detector is trained on one generator at a time; what it computes of an image alone, it computes once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Score = Callable[[np.ndarray], Array]
"""Rows (N, ...) as `Detector.prepare` gives them -> scores (N,)."""

PENALTY = 0.1
"""Inverse strength of the L2 penalty. On 128 images of each of eight GANs, 1 gave a mean AUC of .810, .1 of .815 and
.01 of .823; every coefficient of a DCT of the whole image in place of block means gave .74 to .77."""
HEAD = f"logistic regression (C {PENALTY:g}, classes balanced)"


class Detector(Protocol):
    """A way of telling generated images from real ones."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def learns(self) -> bool:
        """Whether `fit` learns from its images; a pretrained model is the same whatever it is given."""
        ...

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """What is computed of each image alone, whatever else is in the set: (N, ...)."""
        ...

    def fit(self, real: np.ndarray, generated: np.ndarray) -> Score:
        """A scoring function, from prepared rows of real (N, ...) and of generated (M, ...) images."""
        ...


def fit_linear(real: np.ndarray, generated: np.ndarray) -> Score:
    """Logistic regression on standardised features (N, F) and (M, F), both classes weighing the same."""
    from sklearn.linear_model import LogisticRegression  # a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = np.concatenate([real, generated]), np.repeat([0, 1], [len(real), len(generated)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=2000, class_weight="balanced"))
    model.fit(features, labels)
    return lambda rows: np.asarray(model.predict_proba(rows)[:, 1], dtype=np.float64)
