"""What the generators of `alignkit evaluate images` were trained on, and how much of it they copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.images import EMBEDDED, ImageSet, load_images, picture_digests, resize
from evaluation.artefacts import provenance_of
from evaluation.images.copies import FEWEST_TRAINED, Copies, Nearest, find_copies, nearest_training
from evaluation.images.extractors.base import Extractor
from evaluation.images.extractors.classifier import TRAINED_ON
from evaluation.images.features import Features, FeatureSource
from evaluation.schema import Metric, metric
from evaluation.suites.images import PIXELS, REAL, ImagesConfig
from launch.errors import UserError
from launch.provenance import fingerprint_input

GIVEN, TRACED, ASSUMED = "training", "provenance", "assumed"


@dataclass(frozen=True)
class Training:
    """The training images of a generator that are compared, the number of them in all, how they are known, and digests of all."""

    images: ImageSet
    whole: int
    known_by: str
    pictures: frozenset[bytes]

    def note(self) -> str:
        """Which they are, for the reader of a result."""
        how = {
            GIVEN: "as given",
            TRACED: "as the generator's provenance says",
            ASSUMED: f"which is assumed, for the reference is {EMBEDDED} and no provenance says it",
        }[self.known_by]
        part = "" if len(self.images) == self.whole else f", {len(self.images):,} of which were compared (max_images)"
        return f"Copies are looked for among the {self.whole:,} training images of {self.images.source}, {how}{part}."

    def count_among(self, images: ImageSet) -> int:
        """How many of these images are training images, by their pixels."""
        return sum(picture in self.pictures for picture in picture_digests(images.images))


@dataclass(frozen=True)
class Unknown:
    """Why the training images of a generator are not known."""

    reason: str

    def note(self) -> str:
        """What is missing for the lack of them, and what to do."""
        return (
            f"The training images are not known ({self.reason}): copies of them were not looked for; "
            "give them as --training SOURCE."
        )


def find_training(config: ImagesConfig, shape: tuple[int, ...]) -> dict[str, Training | Unknown]:
    """Name -> the training images of each generator, of the shape (C, H, W) of the sets; and of the baselines.

    They are those of the config, else those in the generator's provenance, else for the embedded digits the half that is
    trained on by default. Baselines are held against what all generators share. UserError for a source of the config.
    """
    loaded: dict[str, Training] = {}
    found = {name: _find(config, source, shape, loaded) for name, source in config.generators.items()}
    known = {t.images.source: t for t in found.values() if isinstance(t, Training)}
    shared = next(iter(known.values())) if len(known) == 1 else Unknown(f"the generators have {len(known)} sources")
    return found | {REAL: shared, PIXELS: shared}


def _find(config: ImagesConfig, source: str, shape: tuple[int, ...], loaded: dict[str, Training]) -> Training | Unknown:
    if config.training:
        return _load(config, config.training, GIVEN, shape, loaded)
    try:
        if traced := trace_training(source):
            return _load(config, traced, TRACED, shape, loaded)
    except UserError as error:
        return Unknown(str(error))
    if config.reference in (EMBEDDED, f"{EMBEDDED}::eval"):
        return _load(config, TRAINED_ON, ASSUMED, shape, loaded)
    return Unknown("no provenance of alignkit lies beside the images")


def trace_training(source: str) -> str:
    """What a folder of `alignkit train-generative`, or images of `alignkit sample`, were trained on; "" without provenance.

    UserError when it is not there any more, or has changed.
    """
    inputs = provenance_of(source.split("::")[0]).get("inputs", {})
    if entry := inputs.get("model"):
        inputs = provenance_of(_unchanged("model", entry)).get("inputs", {})
    return _unchanged("data", inputs["data"]) if "data" in inputs else ""


def _unchanged(name: str, entry: Mapping[str, Any]) -> str:
    """The source of an input in a provenance.json; UserError when another lies there now, or it would be fetched."""
    source: str = entry.get("path") or entry["source"]
    if source.startswith("hub:"):
        raise UserError(f"they are {source}, which is not fetched unasked")
    if not source.startswith("embedded:") and fingerprint_input(name, source)["sha256"] != entry["sha256"]:
        raise UserError(f"{source} has changed since")
    return source


def _load(
    config: ImagesConfig, source: str, known_by: str, shape: tuple[int, ...], loaded: dict[str, Training]
) -> Training:
    """The images of a source at the size of the sets, scaled as `train-generative` scales them. Each is read once."""
    if source not in loaded:
        images = load_images(source)
        (channels, height, width), ours = images.images.shape[1:], shape
        if channels == ours[0] and height == width and ours[1] == ours[2] != height:
            images = replace(images, images=resize(images.images, ours[1]))
        if images.images.shape[1:] != ours:
            raise UserError(f"training: {source} has images of shape {(channels, height, width)}, the sets have {ours}")
        if len(images) < FEWEST_TRAINED:
            raise UserError(f"training: {source} has {len(images)} images; give at least {FEWEST_TRAINED}")
        pictures = frozenset(picture_digests(images.images))
        loaded[source] = Training(images.sample(config.max_images, config.seed), len(images), known_by, pictures)
    return replace(loaded[source], known_by=known_by)


def reference_notes(training: Training | Unknown, reference: ImageSet) -> list[str]:
    """That the generator was trained on images that it is compared with, if it was: a floor of real images is none then."""
    if isinstance(training, Unknown) or not (seen := training.count_among(reference)):
        return []
    return [
        f"{seen} of the {len(reference)} reference images are among the training images of {training.images.source}: distances "
        "to them are flattered, and real images that were held out are no floor; compare with images that the generator was "
        "not trained on."
    ]


# ---------------------------------------------------------------------------------------------- measured


@dataclass(frozen=True)
class Copied:
    """The nearest training images of a set, and what they say."""

    training: Training
    nearest: Nearest
    copies: Copies


class CopyDetector:
    """Compares sets with their training images; the features of each source of them are taken once, on all ranks."""

    def __init__(self, source: FeatureSource, reference: ImageSet, real: Features) -> None:
        self.source, self.reference, self.real = source, reference, real
        self._known: dict[str, tuple[Features, Nearest]] = {}

    def take(self, training: Training | Unknown) -> None:
        """Features of training images, and the distances of real images to them. All ranks call it."""
        if isinstance(training, Unknown) or training.images.source in self._known:
            return
        found = self.source.of(training.images)
        near = nearest_training(self.reference, self.real.features, training.images, found.features, itself=False)
        self._known[training.images.source] = found, near

    def compare(self, images: ImageSet, found: Features, training: Training | Unknown) -> Copied | None:
        """What the set has of its training images, which were taken before; None where they are not known."""
        if isinstance(training, Unknown):
            return None
        trained, real = self._known[training.images.source]
        nearest = nearest_training(images, found.features, training.images, trained.features)
        return Copied(training, nearest, find_copies(nearest, real))


def copy_metrics(copied: Copied, extractor: Extractor, count: int) -> list[Metric]:
    """The share of near copies, and how often an image is nearer to a training image than real ones are."""
    copies, training = copied.copies, copied.training
    about: dict[str, Any] = {"training": training.images.source, "training_images": len(training.images)}
    return [
        metric(
            f"{extractor.score_name('training_copies')}@{count}",
            copies.share,
            f"Share of images that are as near to a training image as {copies.false_alarms:.2%} of real images are: near copies",
            higher_is_better=False,
            unit="share",
            threshold=copies.threshold,
            real_images_within=copies.false_alarms,
            exact_copies=int(copied.nearest.exact_N.sum()),
            **about,
        ),
        metric(
            f"{extractor.score_name('nearer_to_training')}@{count}",
            copies.nearer,
            "Chance that an image is nearer to the training images than a real one is (Meehan et al. 2020): 0.5 is ideal",
            higher_is_better=None,
            bounds=(0, 1),
            median_distance=float(np.median(copied.nearest.distance_N)),
            **about,
        ),
    ]
