"""The work of `alignkit evaluate images`: load the sets, take features of all, write a result for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.spatial

from data.images import EMBEDDED, ImageSet, content_fractions, image_set, load_images
from evaluation.images.extractors import Extractor, count_seen, prepare_digits, prepare_inception
from evaluation.images.fidelity import (
    DISAGREEMENT,
    Features,
    extract_features,
    fidelity_fid,
    fidelity_isc,
    load_extractor,
)
from evaluation.images.grid import image_grid, save_png
from evaluation.images.intervals import frechet_estimate, inception_estimate, kernel_estimate
from evaluation.images.metrics import Manifold, precision_recall_density_coverage, shuffled
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject, metric, write_samples
from evaluation.statistics import Estimate, mean, proportion
from evaluation.suites.images import FEWEST, PIXELS, REAL, ImagesConfig, folder_name
from launch.errors import UserError
from launch.provenance import hardware, package_versions
from launch.seeding import numpy_generator
from launch.stage import Job


def run(config: ImagesConfig, job: Job) -> dict[str, Any]:
    """Write one results.json for each generator and baseline, in a folder of its name."""
    if not job.runtime.is_main:
        return {}
    sets, reference = load_sets(config)
    if config.extractor == "digits":
        extractor, accuracy = prepare_digits(job.output_dir)  # not config.seed: the extractor defines the metric
        job.say(f"digits extractor: accuracy {accuracy:.3f} on held-out digits")
    else:
        extractor = prepare_inception(config.inception_weights)
    module = load_extractor(extractor, job.runtime.device)
    real = extract_features(module, extractor, reference)
    summary: dict[str, Any] = {}
    for step, (name, images) in enumerate(sets.items()):
        found = extract_features(module, extractor, images)
        folder = job.output_dir / folder_name(name)
        result = evaluate_images(name, images, found, reference, real, extractor, config, folder)
        summary |= {f"{name}/{m.name}": m.value for m in result.metrics}
        job.say(f"{name}: " + ", ".join(f"{m.name} {m.value:.4g}" for m in result.metrics[:2]))
        job.beat(step)
    return summary


def load_sets(config: ImagesConfig) -> tuple[dict[str, ImageSet], ImageSet]:
    """The sets to measure, cut to one common size, and the reference."""
    reference = load_images(config.reference)
    _check_unseen(config, reference)
    sets = {name: load_images(source) for name, source in config.generators.items()}
    for name, images in sets.items():
        if images.images.shape[1:] != reference.images.shape[1:]:
            raise UserError(
                f"generators.{name}: {images.source} has images of shape {images.images.shape[1:]}, the reference "
                f"{config.reference} has {reference.images.shape[1:]}; bring both to one size and channels"
            )
    if config.baselines:
        left = content_fractions(reference.images, "baseline half") < 0.5
        sets = {REAL: reference.take(left), **sets}
        reference = reference.take(~left)
        sets[PIXELS] = independent_pixels(reference, min(map(len, sets.values())), config.seed)
    count = min(config.max_images, *map(len, sets.values()))
    if count < FEWEST:
        fewest = min(sets, key=lambda name: len(sets[name]))
        raise UserError(f"{fewest}: has {len(sets[fewest])} images; a score needs at least {FEWEST}")
    return {k: v.sample(count, config.seed) for k, v in sets.items()}, reference.sample(config.max_images, config.seed)


def _check_unseen(config: ImagesConfig, reference: ImageSet) -> None:
    """UserError when the digits extractor was trained on reference images: the yardstick of real ones is flattered then."""
    if config.extractor == "digits" and (seen := count_seen(reference)):
        raise UserError(
            f"reference: the digits extractor was trained on {seen} of the {len(reference)} images of {config.reference}; "
            f"compare with images that it has not seen, as in --reference {EMBEDDED}::eval"
        )


def independent_pixels(reference: ImageSet, count: int, seed: int) -> ImageSet:
    """Images whose pixels are each drawn from that pixel's values in the reference: right margins, no structure."""
    rows = numpy_generator(seed, "independent pixels").integers(0, len(reference), (count, *reference.images.shape[1:]))
    images = np.take_along_axis(reference.images, rows, axis=0)
    return image_set(images, None, "independent pixels")


# ---------------------------------------------------------------------------------------------- one set


def evaluate_images(
    name: str,
    images: ImageSet,
    found: Features,
    reference: ImageSet,
    real: Features,
    extractor: Extractor,
    config: ImagesConfig,
    folder: Path,
) -> EvaluationResult:
    """Measure one set of images and write its results.json, samples.jsonl, grid.png and neighbours.png."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = image_metrics(found, real, extractor, config.splits, config.seed)
    manifold = precision_recall_density_coverage(found.features, real.features)
    metrics += _manifold_metrics(manifold, extractor, len(images))
    rows, neighbours = _samples(found, real, manifold.precision)
    _save_pictures(images, reference, neighbours, folder)
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
                "neighbours_k": 3,
                "image_shape": list(images.images.shape[1:]),
                "compression": {"generated": images.compression, "reference": reference.compression},
            },
        ),
        metrics=metrics,
        samples=write_samples(folder, rows),
        notes=_notes(images, reference, found, metrics),
        versions=package_versions(),
        hardware=hardware(),
    )
    result.save(folder)
    return result


def image_metrics(found: Features, real: Features, extractor: Extractor, splits: int, seed: int) -> list[Metric]:
    """Fréchet distance, score and kernel distance with intervals; the first two beside torch-fidelity's own numbers."""
    generated, reference = found.features.double(), real.features.double()
    n = len(generated)
    order = shuffled(n, seed)
    distance = frechet_estimate(generated, reference, seed)
    score = inception_estimate(found.logits, splits, seed)
    theirs = fidelity_fid(found.features, real.features), fidelity_isc(found.logits[order], splits)
    kernel = "kid" if extractor.name == "inception" else f"kd_{extractor.name}"
    return [
        metric(
            f"{extractor.distance_name}@{n}",
            distance,
            f"Fréchet distance to the real images in the space of: {extractor.description}",
            higher_is_better=False,
            torch_fidelity=theirs[0],
            difference_from_torch_fidelity=abs(theirs[0] - distance.value),
        ),
        metric(
            f"{extractor.score_name}@{n}",
            score,
            f"Inception Score, {splits} split(s), by the classes of: {extractor.description}",
            higher_is_better=True,
            torch_fidelity=theirs[1],
            difference_from_torch_fidelity=abs(theirs[1] - score.value),
        ),
        metric(
            f"{kernel}@{n}",
            kernel_estimate(generated, reference),
            "Kernel distance (squared MMD, cubic kernel, all pairs, unbiased: it may be below 0)",
            higher_is_better=False,
        ),
    ]


def _manifold_metrics(manifold: Manifold, extractor: Extractor, n: int) -> list[Metric]:
    meanings: dict[str, tuple[str, Callable[[Any], Estimate]]] = {
        "precision": ("Share of generated images that lie among real ones (k = 3)", proportion),
        "recall": ("Share of real images that lie among generated ones (k = 3)", proportion),
        "density": ("Mean number of real neighbourhoods around a generated image, over k = 3", mean),
        "coverage": ("Share of real images with a generated one in their neighbourhood (k = 3)", proportion),
    }
    return [
        metric(
            f"{name}_{extractor.name}@{n}",
            estimate(getattr(manifold, name)),
            meaning,
            higher_is_better=True,
            unit="share" if estimate is proportion else "",
        )
        for name, (meaning, estimate) in meanings.items()
    ]


def _samples(found: Features, real: Features, precise: np.ndarray) -> tuple[list[dict[str, Any]], np.ndarray]:
    """One row for each image, and the index (N, 2) of its nearest and second nearest real image."""
    tree = scipy.spatial.cKDTree(real.features.numpy())
    distances, index = tree.query(found.features.numpy(), k=2)
    confidence, label = found.logits.double().softmax(dim=1).max(dim=1)
    rows = [
        {
            "index": i,
            "class": int(label[i]),
            "confidence": round(float(confidence[i]), 6),
            "nearest_real": int(index[i, 0]),
            "distance": round(float(distances[i, 0]), 6),
            "among_real": bool(precise[i]),
        }
        for i in range(len(index))
    ]
    return rows, index


def _save_pictures(images: ImageSet, reference: ImageSet, neighbours: np.ndarray, folder: Path) -> None:
    """grid.png: the first 64 images; neighbours.png: 12 of them above their nearest real image."""
    scale = max(1, 32 // images.images.shape[2])
    save_png(folder / "grid.png", image_grid(images.images[:64], 16), scale)
    pairs = np.concatenate([images.images[:12], reference.images[neighbours[:12, 0]]])
    save_png(folder / "neighbours.png", image_grid(pairs, len(pairs) // 2), scale)


def _notes(images: ImageSet, reference: ImageSet, found: Features, metrics: list[Metric]) -> list[str]:
    notes = []
    n, dimensions = found.features.shape
    if n <= dimensions:
        notes.append(f"{n} images for {dimensions} feature dimensions: the Fréchet distance is mostly bias.")
    if images.compression != reference.compression:
        notes.append(
            f"File compression is {images.compression} here and {reference.compression} in the reference: scores see that."
        )
    copies = n - len(np.unique(images.images.reshape(n, -1), axis=0))
    if copies:
        notes.append(f"{copies} of {n} images are exact copies of others in the set.")
    for entry in metrics[:2]:
        scale = max(abs(entry.extra["torch_fidelity"]), 1e-3)
        if entry.extra["difference_from_torch_fidelity"] > DISAGREEMENT * scale:
            notes.append(f"{entry.name} differs from torch-fidelity's {entry.extra['torch_fidelity']:.8g}.")
    return notes
