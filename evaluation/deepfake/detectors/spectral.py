"""A linear detector over spectra: the traces that upsampling leaves. See evaluation/deepfake/features.py."""

from __future__ import annotations

import numpy as np

from evaluation.deepfake.detectors.base import HEAD, Score, fit_linear
from evaluation.deepfake.features import spectral_features


class SpectralDetector:
    """Log powers of frequency rings and mean log magnitudes of 8x8 DCT coefficients, with a linear head."""

    name, learns = "spectral", True
    description = f"{HEAD} on standardised log ring powers and 8x8 block DCT"

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Features (N, F)."""
        return spectral_features(images)

    def fit(self, real: np.ndarray, generated: np.ndarray) -> Score:
        """The linear head."""
        return fit_linear(real, generated)
