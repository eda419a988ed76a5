"""The work of `alignkit evaluate images`: load the sets, take features of all, write a result for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.images import ImageSet
from evaluation.artefacts import save_result
from evaluation.images.extractors.base import Extractor
from evaluation.images.extractors.prepare import prepare_extractor
from evaluation.images.features import Features, FeatureSource
from evaluation.images.fidelity import DISAGREEMENT
from evaluation.images.grid import image_grid, save_png
from evaluation.images.manifold import nearest_neighbours
from evaluation.images.sliced import DIRECTIONS
from evaluation.resolution import resolution_notes
from evaluation.sample_log import clear_samples
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject, write_samples
from evaluation.suites.images import PIXELS, REAL, ImagesConfig
from evaluation.suites.images_metrics import NEIGHBOURS, classification_metric, measure_features
from evaluation.suites.images_sets import count_distinct, load_sets, sample_generators
from evaluation.suites.images_training import (
    Copied,
    CopyDetector,
    Training,
    Unknown,
    copy_metrics,
    find_training,
    reference_notes,
)
from launch.files import SCORED, folder_name
from launch.stage import Job

RESOLVED = ("fd", "is", "kd", "md", "precision", "recall", "coverage", "training_copies")


def run(config: ImagesConfig, job: Job) -> dict[str, Any]:
    """Write one results.json for each generator and baseline, in a folder of its name. All ranks share the images."""
    sets, reference = load_sets(config, sample_generators(config, job.runtime))
    training = find_training(config, reference.images.shape[1:])
    extractor = prepare_extractor(config, job.output_dir, job.runtime)
    job.say(f"extractor: {extractor.description}")
    seen = 0

    def beat(count: int) -> None:
        nonlocal seen
        seen += count
        job.beat(seen)

    folder = Path(config.feature_cache) if config.feature_cache else job.output_dir / SCORED
    source = FeatureSource(extractor, job.runtime, folder, beat, job.stop_if_requested)
    real = source.of(reference)
    detector = CopyDetector(source, reference, real)
    labelled = any(images.labels is not None for name, images in sets.items() if name in config.generators)
    summary: dict[str, Any] = {}
    for number, (name, images) in enumerate(sets.items()):
        job.stop_if_requested(number)
        found = source.of(images)
        detector.take(training[name])
        if not job.runtime.is_main:
            continue
        copied = detector.compare(images, found, training[name])
        known = Known(reference, real, training[name], copied)
        result = evaluate_images(name, images, found, known, extractor, config, job, labelled)
        summary |= {f"{name}/{m.name}": m.value for m in result.metrics}
        job.say(f"{name}: " + ", ".join(f"{m.name} {m.value:.4g}" for m in result.metrics[:2]))
        beat(0)
    if source.known:
        job.say(f"the features of {source.known} images were there before")
    clear_samples(job)
    return summary


# ---------------------------------------------------------------------------------------------- one set


@dataclass(frozen=True)
class Known:
    """What a set is held against: the reference with its features, and the training images with what was copied of them."""

    reference: ImageSet
    real: Features
    training: Training | Unknown
    copied: Copied | None


def evaluate_images(
    name: str,
    images: ImageSet,
    found: Features,
    known: Known,
    extractor: Extractor,
    config: ImagesConfig,
    job: Job,
    labelled: bool,
) -> EvaluationResult:
    """Measure one set of images and write its results.json, samples.jsonl and grid.png, and neighbours.png where its training
    images are known.

    `labelled`: whether some generator has labels, so that classification accuracy is worth its minute.
    """
    reference, real, copied = known.reference, known.real, known.copied
    folder = job.output_dir / folder_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    measured = measure_features(found, real, extractor, config.splits, config.seed)
    metrics = measured.metrics
    if labelled and images.labels is not None and reference.labels is not None:
        metrics.append(classification_metric(images, reference, config.seed))
    if copied:
        metrics += copy_metrics(copied, extractor, len(images))
    rows = _samples(images, found, known, measured.manifold.precision)
    _save_pictures(images, copied, folder)
    baseline = name in (REAL, PIXELS)
    result = EvaluationResult(
        suite="images",
        subject=Subject(name, "images" if baseline else "image generator", images.source, images.sha256),
        protocol=Protocol(
            dataset=config.reference,
            dataset_sha256=reference.sha256,
            n_items=len(reference),
            split="half, by content" if config.baselines else "whole",
            seeds=[config.seed],
            settings={
                "extractor": extractor.description,
                "extractor_sha256": extractor.sha256,
                "covariance": "ddof 1, float64",
                "inception_score_splits": config.splits,
                "neighbours_k": NEIGHBOURS,
                "monge_directions": DIRECTIONS,
                "image_shape": list(images.images.shape[1:]),
                "compression": {"generated": images.compression, "reference": reference.compression},
            },
        ),
        metrics=metrics,
        samples=write_samples(folder, rows),
        resolution=resolution_notes(metrics, _resolved(extractor, len(images)), paired=False),
        notes=_notes(images, reference, found, metrics)
        + ([] if baseline else [*reference_notes(known.training, reference), known.training.note()]),
    )
    save_result(job, result, folder)
    return result


def _resolved(extractor: Extractor, count: int) -> list[str]:
    """The metrics whose smallest difference is told."""
    return [f"{extractor.score_name(score)}@{count}" for score in RESOLVED]


def _samples(images: ImageSet, found: Features, known: Known, precise: np.ndarray) -> list[dict[str, Any]]:
    """One row for each image. Images are named by their places in the sources that the user gave, not in what was drawn."""
    index, distances = nearest_neighbours(found.features, known.real.features, 1)
    own, nearest = _places("index", images), _places("nearest_real", known.reference, index[:, 0])
    rows: list[dict[str, Any]] = [
        {**place, **near, "distance": round(float(distance), 6), "among_real": bool(among)}
        for place, near, distance, among in zip(own, nearest, distances[:, 0], precise, strict=True)
    ]
    if copied := known.copied:
        places = _places("nearest_training", copied.training.images, copied.nearest.index_N)
        columns = copied.nearest.distance_N, copied.copies.near_N
        for row, place, distance, near in zip(rows, places, *columns, strict=True):
            row |= {
                **place,
                "training_distance": round(float(distance), 6),
                "training_copy": bool(near),
            }
    if found.logits is not None:
        odds = np.exp(found.logits - found.logits.max(axis=1, keepdims=True))
        confidence = odds.max(axis=1) / odds.sum(axis=1)
        for row, label, share in zip(rows, found.logits.argmax(axis=1), confidence, strict=True):
            row |= {"class": int(label), "confidence": round(float(share), 6)}
    return rows


def _places(field: str, images: ImageSet, chosen: np.ndarray | None = None) -> list[dict[str, Any]]:
    """The row of each (chosen) image in its source, and its file where that is a folder of pictures."""
    rows = (images.row_numbers if chosen is None else images.row_numbers[chosen]).tolist()
    return [{field: row} | ({f"{field}_file": images.files[row]} if images.files else {}) for row in rows]


def _save_pictures(images: ImageSet, copied: Copied | None, folder: Path) -> None:
    """grid.png: the first 64 images; neighbours.png: the 12 nearest to a training image, each above that."""
    scale = max(1, 32 // images.images.shape[2])
    save_png(folder / "grid.png", image_grid(images.images[:64], 16), scale)
    (folder / "neighbours.png").unlink(missing_ok=True)
    if copied:
        nearest = np.argsort(copied.nearest.distance_N, kind="stable")[:12]
        trained = copied.training.images.images[copied.nearest.index_N[nearest]]
        pairs = np.concatenate([images.images[nearest], trained])
        save_png(folder / "neighbours.png", image_grid(pairs, len(nearest)), scale)


def _notes(images: ImageSet, reference: ImageSet, found: Features, metrics: list[Metric]) -> list[str]:
    notes = []
    n, dimensions = found.features.shape
    if n <= dimensions:
        notes.append(f"{n} images for {dimensions} feature dimensions: the Fréchet distance is mostly bias.")
    if images.compression != reference.compression:
        notes.append(
            f"File compression is {images.compression} here and {reference.compression} in the reference: scores see that."
        )
    distinct = count_distinct(images)
    if distinct == 1:
        notes.append(f"All {n} images are the same picture: the generator has collapsed, or its output was clipped.")
    elif distinct < n:
        notes.append(f"{n - distinct} of {n} images are exact copies of others in the set.")
    return notes + _disagreements(metrics) + _curvatures(metrics)


def _disagreements(metrics: list[Metric]) -> list[str]:
    return [
        f"{entry.name} differs from torch-fidelity's {entry.extra['torch_fidelity']:.8g}."
        for entry in metrics
        if "torch_fidelity" in entry.extra
        and entry.extra["difference_from_torch_fidelity"] > DISAGREEMENT * max(abs(entry.extra["torch_fidelity"]), 1e-3)
    ]


def _curvatures(metrics: list[Metric]) -> list[str]:
    """Where thirds lie off the line through the whole and halves by more than a quarter of its rise."""
    return [
        f"{entry.name}: the distance of thirds of the sets lies {entry.extra['curvature']:+.0%} off the line that is "
        "extrapolated; take more images before believing it."
        for entry in metrics
        if abs(entry.extra.get("curvature", 0.0)) > 0.25
    ]
