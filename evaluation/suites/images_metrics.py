"""The metrics of one set of images, from its features and those of the reference: names, intervals, meanings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.images import ImageSet
from evaluation.images.extractors.base import Extractor
from evaluation.images.extractors.classifier import classification_hits
from evaluation.images.features import Features
from evaluation.images.fidelity import fidelity_fid, fidelity_isc
from evaluation.images.intervals import (
    cmmd_estimate,
    extrapolated_estimate,
    frechet_estimate,
    inception_estimate,
    kernel_estimate,
    manifold_estimates,
    mind_estimate,
)
from evaluation.images.manifold import Manifold
from evaluation.images.score import shuffled
from evaluation.schema import Metric, metric
from evaluation.statistics import Estimate, proportion

COMPARED_DIMENSIONS = 512
"""torch-fidelity's Fréchet distance is computed beside ours up to so many dimensions; at 2048 it takes a minute."""
NEIGHBOURS = 3
MANIFOLD = {
    "precision": "Share of generated images that lie among real ones (k = 3)",
    "recall": "Share of real images that lie among generated ones (k = 3)",
    "density": "Mean number of real neighbourhoods around a generated image, over k = 3",
    "coverage": "Share of real images with a generated one in their neighbourhood (k = 3)",
}


@dataclass(frozen=True)
class Measured:
    """The metrics of a set, and the outcomes of its single images among the real ones."""

    metrics: list[Metric]
    manifold: Manifold


def measure_features(found: Features, real: Features, extractor: Extractor, splits: int, seed: int) -> Measured:
    """Every metric that needs features and logits alone; all from the same arrays, which nothing is computed for twice."""
    n = len(found.features)
    metrics = [_distance_metric(found, real, extractor, seed)]
    if found.logits is not None:
        metrics.append(_score_metric(found.logits, extractor, splits, seed))
    metrics += _kernel_metrics(found, real, extractor, seed)
    manifold, estimates = manifold_estimates(found.features, real.features, seed, NEIGHBOURS)
    for name, estimate in estimates.items():
        unit = "" if name == "density" else "share"
        bounds = (0, None) if name == "density" else (0, 1)
        label = f"{extractor.score_name(name)}@{n}"
        metrics.append(metric(label, estimate, MANIFOLD[name], higher_is_better=True, unit=unit, bounds=bounds))
    return Measured(metrics, manifold)


def _distance_metric(found: Features, real: Features, extractor: Extractor, seed: int) -> Metric:
    estimate = frechet_estimate(found.features, real.features, seed)
    theirs: dict[str, Any] = {}
    if found.features.shape[1] <= COMPARED_DIMENSIONS:
        theirs = _beside(fidelity_fid(found.features, real.features), estimate)
    return metric(
        f"{extractor.score_name('fd')}@{len(found.features)}",
        estimate,
        f"Fréchet distance to the real images in the space of: {extractor.description}",
        higher_is_better=False,
        bounds=(0, None),
        **theirs,
    )


def _score_metric(logits: np.ndarray, extractor: Extractor, splits: int, seed: int) -> Metric:
    estimate = inception_estimate(logits, splits, seed)
    return metric(
        f"{extractor.score_name('is')}@{len(logits)}",
        estimate,
        f"Inception Score, {splits} split(s), by the classes of: {extractor.description}",
        higher_is_better=True,
        bounds=(1, None),
        **_beside(fidelity_isc(logits[shuffled(len(logits), seed)], splits), estimate),
    )


def _beside(theirs: float, ours: Estimate) -> dict[str, Any]:
    return {"torch_fidelity": theirs, "difference_from_torch_fidelity": abs(theirs - ours.value)}


def _kernel_metrics(found: Features, real: Features, extractor: Extractor, seed: int) -> list[Metric]:
    """The distances beside the Fréchet distance: what it does not see, and what it would be without its bias."""
    x, y = found.features, real.features
    line, infinite = extrapolated_estimate(x, y, seed)
    rows: list[tuple[str, Estimate, str, dict[str, Any]]] = [
        (
            "kd",
            kernel_estimate(x, y),
            "Kernel distance (squared MMD, cubic kernel, all pairs, unbiased: may be below 0)",
            {},
        ),
        (
            "md",
            mind_estimate(x, y, seed),
            "Monge distance (MIND: sliced squared Wasserstein, 1000 directions, times 3 D)",
            {"bounds": (0, None)},
        ),
        (
            "cmmd",
            cmmd_estimate(x, y),
            "CMMD (1000 times squared MMD, Gaussian kernel of sigma 10, features of length 1)",
            {},
        ),
        (
            "extrapolated_fd",
            infinite,
            "Fréchet distance extrapolated to infinitely many images of both sets",
            {"curvature": line.curvature},
        ),
    ]
    named = {"extrapolated_fd": f"extrapolated_{extractor.score_name('fd')}"}
    return [
        metric(
            f"{named.get(key, extractor.score_name(key))}@{len(x)}", estimate, meaning, higher_is_better=False, **extra
        )
        for key, estimate, meaning, extra in rows
    ]


def classification_metric(images: ImageSet, reference: ImageSet, seed: int) -> Metric:
    """The classification accuracy score of labelled images; its name has no extractor, since it needs none."""
    hits = classification_hits(images, reference, seed)
    return metric(
        f"classification_accuracy@{len(images)}",
        proportion(hits),
        "Accuracy on the real images of a classifier trained on these alone (one training; the interval is over real images)",
        higher_is_better=True,
        unit="share",
    )
