"""Reconstruction error: how an autoencoder that saw real images alone fails on others.

An autoencoder learns to restore what is common in real images through a narrow middle. What it cannot restore of an image
is summed up by frequency, and a linear head learns how that differs for generated ones. The real images that the
autoencoder was trained on are no part of what the head learns from: their errors are too small.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from data.images import content_fractions
from evaluation.deepfake.detectors.base import HEAD, Score, fit_linear
from evaluation.deepfake.detectors.training import crops, in_parts, initialise, train
from evaluation.deepfake.features import GREY_LEVEL, azimuthal_average, power_spectrum

STEPS, BATCH, NARROW = 300, 16, 4
STRIDE = 4


class Autoencoder(nn.Module):
    """Images through a sixteenth of their positions with NARROW channels, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(channels, 24, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(24, 48, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(48, NARROW, 1)),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(NARROW, 48, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(48, 24, 3, padding=1)),
            *(nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(24, channels, 3, padding=1)),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) of any size -> their reconstructions; sides are filled up to a multiple of STRIDE."""
        height, width = images.shape[2:]
        filled = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        return self.decoder(self.encoder(filled))[:, :, :height, :width]


class ReconstructionDetector:
    """The autoencoder is trained when this is made; `prepare` gives the errors of images, `fit` the linear head."""

    name, learns = "reconstruction", True

    def __init__(self, real: np.ndarray, seed: int, steps: int = STEPS) -> None:
        """Real images that neither the head nor a test gets to see: see `set_apart`."""
        self.description = (
            f"{HEAD} on standardised log powers, by frequency, of the error of an autoencoder of {len(real)} real images "
            f"({steps} steps of {BATCH} crops)"
        )
        model = Autoencoder(real.shape[1])
        initialise(model, seed, "autoencoder")

        def loss_of(step: int) -> Tensor:
            images = crops(real, BATCH, seed, "autoencoder", step)
            return F.mse_loss(model(images), images)

        train(model, steps, loss_of)
        self.model = model

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Log mean square and log powers of frequency rings of the error, mean over the channels: (N, 1 + R)."""
        errors = in_parts(lambda x: (x - self.model(x)).mean(dim=1) / 2, images)
        rings = azimuthal_average(power_spectrum(errors))
        total = (errors**2).mean(axis=(1, 2))[:, None]
        return np.log(np.concatenate([total, rings], axis=1) + GREY_LEVEL**2)

    def fit(self, real: np.ndarray, generated: np.ndarray) -> Score:
        """The linear head."""
        return fit_linear(real, generated)


def set_apart(images: np.ndarray) -> np.ndarray:
    """Which images the autoencoder learns from, half of them by content: bool (N,)."""
    return content_fractions(images, "autoencoder") < 0.5
