"""Feature extractors: a small classifier trained on labelled images (the digits), and torch-fidelity's Inception.

Both are torch-fidelity extractors, so that its metrics and ours run on the same features. A score carries its
extractor in its name (`fd_digits@360`); only Inception's may be called FID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from data.images import EMBEDDED, ImageSet, load_images
from launch.errors import UserError
from launch.files import sha256_file
from launch.seeding import permutation, torch_generator

REGISTERED_NAME = "alignkit-digits"
TRAINED_ON = f"{EMBEDDED}::train"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SHA256_START = "6726825d"


class DigitsClassifier(nn.Module):
    """Three convolutions and a 64-wide hidden layer over 8x8 grey images: about 75,000 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 2 * 2, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 1, 8, 8) in [0, 1] -> features (N, 64) and logits (N, classes)."""
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(images)))), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        features = F.relu(self.hidden(x.flatten(1)))
        return features, self.head(features)


def _initialise(model: nn.Module, seed: int) -> None:
    generator = torch_generator(seed, "digits extractor weights")
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            else:
                parameter.zero_()


def train_digits_classifier(train: ImageSet, seed: int = 0, epochs: int = 12, batch: int = 64) -> DigitsClassifier:
    """A classifier of labelled 8x8 grey images: AdamW with a one-cycle rate, the same bits on every run of a machine."""
    if train.labels is None:
        raise UserError(f"{train.source}: has no labels; an extractor is trained as a classifier and needs them")
    model = DigitsClassifier(int(train.labels.max()) + 1)
    _initialise(model, seed)
    images = torch.from_numpy(train.images).float() / 255
    labels = torch.from_numpy(train.labels)
    steps = -(-len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over threads depend on their number; at this size one is as fast
    try:
        for epoch in range(epochs):
            order = torch.from_numpy(permutation(len(images), seed, "digits extractor order", epoch))
            for index in order.split(batch):
                loss = F.cross_entropy(model(images[index])[1], labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    return model.eval().requires_grad_(False)


class DigitsExtractor(FeatureExtractorBase):
    """torch-fidelity's view of a `DigitsClassifier` in a safetensors file: uint8 (N, 3, 8, 8) -> features, logits.

    It computes in float64: what remains of the difference between machines is 1e-15, and means need no care.
    """

    layers: ClassVar[dict[str, str]] = {"isc": "logits", "fid": "features", "kid": "features", "prc": "features"}

    def __init__(self, name: str, features_list: Sequence[str], feature_extractor_weights_path: str, **_: Any) -> None:
        super().__init__(name, features_list)
        weights = safetensors.torch.load_file(feature_extractor_weights_path)
        self.model = DigitsClassifier(len(weights["head.bias"]))
        self.model.load_state_dict(weights)
        self.model.double().eval().requires_grad_(False)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return DigitsExtractor.layers[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        if input.shape[1:] != (3, 8, 8):
            size = f"{input.shape[3]}x{input.shape[2]}"
            raise UserError(
                f"images are {size}, the digits extractor takes 8x8; give --extractor inception with its weights"
            )
        grey = input.double().mean(dim=1, keepdim=True) / 255  # three equal channels give the grey value exactly
        found = dict(zip(self.get_provided_features_list(), self.model(grey), strict=True))
        return tuple(found[name] for name in self.features_list)


if REGISTERED_NAME not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(REGISTERED_NAME, DigitsExtractor)


# ---------------------------------------------------------------------------------------------- choosing one


@dataclass(frozen=True)
class Extractor:
    """An extractor ready for torch-fidelity: its registered name, weights file, layers, and what a report says."""

    name: str
    registered: str
    weights: Path
    sha256: str
    description: str
    feature_layer: str
    logit_layer: str

    @property
    def distance_name(self) -> str:
        """`fid` for Inception, `fd_<extractor>` for any other."""
        return "fid" if self.name == "inception" else f"fd_{self.name}"

    @property
    def score_name(self) -> str:
        """`is` for Inception, `is_<extractor>` for any other."""
        return "is" if self.name == "inception" else f"is_{self.name}"


def prepare_digits(folder: Path, seed: int = 0) -> tuple[Extractor, float]:
    """Train the digits extractor into a folder (seconds). Returns it and its accuracy on the held-out digits."""
    train, test = load_images(TRAINED_ON), load_images(f"{EMBEDDED}::eval")
    model = train_digits_classifier(train, seed)
    images, labels = torch.from_numpy(test.images).float() / 255, torch.from_numpy(np.asarray(test.labels))
    accuracy = (model(images)[1].argmax(dim=1) == labels).double().mean().item()
    path = folder / "digits-extractor.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), path)
    description = (
        f"64 features of a CNN classifier of {len(train)} digits (accuracy {accuracy:.3f} on {len(test)} others)"
    )
    extractor = Extractor(
        "digits", REGISTERED_NAME, path, weights_hash(model.state_dict()), description, "features", "logits"
    )
    return extractor, accuracy


def count_seen(images: ImageSet) -> int:
    """How many of these images the digits extractor was trained on, by their pixels."""
    trained_on = {image.tobytes() for image in load_images(TRAINED_ON).images}
    return sum(image.tobytes() in trained_on for image in images.images)


def weights_hash(weights: dict[str, Tensor]) -> str:
    """Hex SHA-256 of named tensors: their names and bytes, whatever file holds them."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def prepare_inception(weights: str) -> Extractor:
    """torch-fidelity's Inception from a path, or from its usual place in TORCH_HOME; nothing is downloaded.

    The file is opened with `weights_only=True` first: torch-fidelity itself unpickles it without that guard.
    """
    path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.is_file():
        raise UserError(
            f"{path}: no Inception weights there; fetch {INCEPTION_FILE} (95.7 MB, sha256 {INCEPTION_SHA256_START}...) "
            f"from {INCEPTION_URL} and put it there, or give --inception_weights PATH"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: is no plain file of tensors ({error}); fetch {INCEPTION_FILE} again") from None
    description = "2048 pooled features of the 2015 TensorFlow Inception-v3, through torch-fidelity"
    return Extractor(
        "inception", "inception-v3-compat", path, sha256_file(path), description, "2048", "logits_unbiased"
    )
