"""A small classifier trained on labelled images, as an extractor of its hidden layer, and for classification accuracy.

It is trained for seconds to minutes with derived seeds on one thread: one machine gives the same weights, bit for bit.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.images import EMBEDDED, ImageSet, load_images, picture_digests
from evaluation.images.extractors.base import Extractor, FeatureFunction, weights_hash
from launch.errors import UserError
from launch.files import sha256_text, write_atomic
from launch.seeding import permutation, torch_generator

TRAINED_ON = f"{EMBEDDED}::train"
EPOCHS, BATCH, MOST_ROWS = 12, 64, 60_000
PREPROCESSING = "pixels / 255, float64"
FILE = "{name}-extractor.safetensors"


class ImageClassifier(nn.Module):
    """Three convolutions and a 64-wide hidden layer: about 75,000 parameters, for small images of any size."""

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 2 * 2, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, channels, H, W) in [0, 1] -> features (N, 64) and logits (N, classes)."""
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(images)))), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        features = F.relu(self.hidden(F.adaptive_avg_pool2d(x, 2).flatten(1)))  # 8x8 images are at 2x2 already
        return features, self.head(features)


def _initialise(model: nn.Module, seed: int) -> None:
    generator = torch_generator(seed, "digits extractor weights")
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            else:
                parameter.zero_()


def train_classifier(train: ImageSet, seed: int = 0, epochs: int | None = None) -> ImageClassifier:
    """A classifier of labelled images: AdamW with a one-cycle rate, the same bits on every run of a machine.

    12 passes over the images, or as many as make 60,000 images seen, but at least one.
    """
    labels = labels_of(train)
    epochs = epochs or max(1, min(EPOCHS, MOST_ROWS // len(train)))
    model = ImageClassifier(int(labels.max()) + 1, train.images.shape[1])
    _initialise(model, seed)
    images = torch.from_numpy(train.images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * -(-len(images) // BATCH))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over threads depend on their number; at this size one is nearly as fast
    try:
        for epoch in range(epochs):
            order = torch.from_numpy(permutation(len(images), seed, "digits extractor order", epoch))
            for index in order.split(BATCH):
                loss = F.cross_entropy(model(images[index].float() / 255)[1], labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    return model.eval().requires_grad_(False)


def labels_of(images: ImageSet) -> Tensor:
    if images.labels is None:
        raise UserError(
            f"{images.source}: has no labels; a classifier needs them: give an .npz with `labels`, MNIST's files, "
            "folders named by class, or a data set with a label column"
        )
    if images.labels.min() < 0:
        raise UserError(f"{images.source}: has the label {images.labels.min()}; number classes from 0")
    return torch.from_numpy(np.asarray(images.labels, dtype=np.int64))


def predict(model: ImageClassifier, images: ImageSet, batch: int = 256) -> np.ndarray:
    """The class of each image: int64 (N,)."""
    parts = torch.from_numpy(images.images).split(batch)
    with torch.no_grad():
        return torch.cat([model(part.float() / 255)[1].argmax(dim=1) for part in parts]).numpy()


def classification_hits(train: ImageSet, test: ImageSet, seed: int = 0) -> np.ndarray:
    """Whether a classifier that was trained on one labelled set is right on each image of another: bool (N,).

    With generated images to train on, the mean is the classification accuracy score of Ravuri & Vinyals 2019 (arXiv
    1905.10887): it asks for all classes and their variety, where precision asks for good looks.
    """
    truth = labels_of(test).numpy()
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"{train.source}: images of shape {train.images.shape[1:]}, {test.source} has {test.images.shape[1:]}; "
            "bring both to one size and channels"
        )
    return predict(train_classifier(train, seed), test) == truth


# ---------------------------------------------------------------------------------------------- as an extractor


def train_digits(folder: Path, seed: int = 0) -> Path:
    """Train the digits extractor into a folder (seconds); the file."""
    train, test = load_images(TRAINED_ON), load_images(f"{EMBEDDED}::eval")
    model = train_classifier(train, seed)
    accuracy = float((predict(model, test) == test.labels).mean())
    about = f"64 features of a CNN classifier of {len(train)} digits (accuracy {accuracy:.3f} on {len(test)} others)"
    return save_classifier(folder / FILE.format(name="digits"), model, train, about)


def train_extractor(source: str, folder: Path, seed: int = 0) -> Path:
    """Train a classifier on all labelled images of a source into a folder; the file."""
    train = load_images(source)
    about = f"64 features of a CNN classifier of {len(train)} images of {source}"
    return save_classifier(folder / FILE.format(name="classifier"), train_classifier(train, seed), train, about)


def save_classifier(path: Path, model: ImageClassifier, train: ImageSet, description: str) -> Path:
    """Write a classifier with the shape of its images and what it was trained on; the file."""
    about = {"shape": json.dumps(list(train.images.shape[1:])), "description": description}
    write_atomic(path, safetensors.torch.save(model.state_dict(), metadata=about))
    return path


def load_classifier(path: Path, name: str = "classifier") -> Extractor:
    """The extractor in a file that `evaluate images` wrote. It computes in float64: machines then differ by 1e-15."""
    try:
        weights = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata()
        shape = tuple(json.loads(about["shape"]))
        model = ImageClassifier(len(weights["head.bias"]), shape[0])
        model.load_state_dict(weights)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"model: {path}: is no classifier of `alignkit evaluate images` ({reason}); give its "
            "classifier-extractor.safetensors, or train one with --classifier_data"
        ) from None
    sha256 = sha256_text(f"{weights_hash(weights)} {PREPROCESSING}")
    function = partial(_feature_function, model, shape, name)
    return Extractor(name, sha256, about["description"], function)


def _feature_function(
    model: ImageClassifier, shape: tuple[int, ...], name: str, device: torch.device
) -> FeatureFunction:
    double = model.double().eval().requires_grad_(False).to(device)

    def features(images: Tensor) -> tuple[Tensor, Tensor | None]:
        if tuple(images.shape[1:]) != shape:
            raise UserError(
                f"images are {_size(tuple(images.shape[1:]))}, the {name} extractor takes {_size(shape)}; "
                "give an extractor for this size, as with --extractor classifier --classifier_data SOURCE"
            )
        return double(images.to(device).double() / 255)

    return features


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} {'grey' if shape[0] == 1 else 'RGB'}"


def count_seen(images: ImageSet, source: str = TRAINED_ON) -> int:
    """How many of these images a classifier of `source` was trained on, by their pixels."""
    trained_on = set(picture_digests(load_images(source).images))
    return sum(picture in trained_on for picture in picture_digests(images.images))
