"""A small convolutional network, trained from nothing on the images themselves."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor, nn

from evaluation.deepfake.detectors.base import Score
from evaluation.deepfake.detectors.training import crops, in_parts, initialise, train

STEPS, BATCH = 200, 32


class SmallNetwork(nn.Module):
    """Four convolutions and a mean over the image, so that images may have any size: about 60,000 parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.third = nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.fourth = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] -> logits (N,) of "generated"."""
        x = F.relu(self.second(F.relu(self.first(images))))
        x = F.relu(self.fourth(F.relu(self.third(x))))
        return self.head(x.mean(dim=(2, 3)))[:, 0]


class NetworkDetector:
    """The network, trained on batches with as many generated as real images."""

    name, learns = "network", True

    def __init__(self, seed: int, steps: int = STEPS) -> None:
        self.seed, self.steps = seed, steps
        self.description = f"convolutional network of 4 layers, {steps} steps of {BATCH} crops, classes balanced"

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """The images as they are."""
        return images

    def fit(self, real: np.ndarray, generated: np.ndarray) -> Score:
        """Train a network; its weights and its batches depend on the seed alone."""
        model = SmallNetwork(real.shape[1])
        initialise(model, self.seed, "network detector")
        labels = torch.tensor([0.0, 1.0]).repeat_interleave(BATCH // 2)

        def loss_of(step: int) -> Tensor:
            parts = [crops(x, BATCH // 2, self.seed, f"network {k}", step) for k, x in enumerate((real, generated))]
            return F.binary_cross_entropy_with_logits(model(torch.cat(parts)), labels)

        train(model, self.steps, loss_of)
        return lambda images: expit(in_parts(model, images))
