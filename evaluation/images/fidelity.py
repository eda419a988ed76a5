"""Where our metrics meet torch-fidelity: its extractors and loader make the features, and it computes FID and IS too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from data.images import ImageSet
from evaluation.images.extractors import Extractor

DISAGREEMENT = 1e-6
"""Relative difference between torch-fidelity's number and ours that is reported as a fault."""


class UInt8Images(Dataset[Tensor]):
    """What torch-fidelity reads: uint8 (3, H, W); a grey image is three equal channels."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = torch.from_numpy(self.images[index])
        return image.expand(3, -1, -1) if len(image) == 1 else image


@dataclass(frozen=True)
class Features:
    """Features (N, D) and logits (N, C) of a set of images, in its order; float64 from the digits extractor."""

    features: Tensor
    logits: Tensor


def load_extractor(extractor: Extractor, device: torch.device) -> Any:
    """torch-fidelity's module for an extractor, on a device."""
    return create_feature_extractor(
        extractor.registered,
        [extractor.feature_layer, extractor.logit_layer],
        cuda=device.type == "cuda",
        feature_extractor_weights_path=str(extractor.weights),
        verbose=False,
    )


def extract_features(module: Any, extractor: Extractor, images: ImageSet, batch: int = 64) -> Features:
    """One pass over the images, in this process (no loader workers), each image once."""
    cuda = next(module.parameters()).is_cuda
    found = get_featuresdict_from_dataset(UInt8Images(images.images), module, batch, cuda, True, False)
    return Features(found[extractor.feature_layer], found[extractor.logit_layer])


def fidelity_fid(generated: Tensor, real: Tensor) -> float:
    """torch-fidelity's FID of two sets of features (N, D)."""
    statistics = [fid_features_to_statistics(features) for features in (generated, real)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def fidelity_isc(logits: Tensor, splits: int) -> float:
    """torch-fidelity's Inception Score of logits (N, C), in the order given."""
    return float(isc_features_to_metric(logits, splits, shuffle=False)["inception_score_mean"])
