"""Known answers of the image metrics, on features."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

from evaluation.images.frechet import (
    FeatureStatistics,
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_from_statistics,
)
from evaluation.images.influence import frechet_influence
from evaluation.images.metrics import inception_score, kernel_distance, precision_recall_density_coverage
from evaluation.selftest.registry import KnownAnswer
from launch.seeding import numpy_generator


def _normal(purpose: str, *shape: int) -> np.ndarray:
    return numpy_generator(0, f"selftest {purpose}").standard_normal(shape)


def _gaussians(mean: float, scale: float, dimensions: int = 64) -> float:
    """Of N(0, I) and N(mean, scale I)."""
    eye = np.eye(dimensions)
    return frechet_distance(np.zeros(dimensions), eye, np.full(dimensions, mean), scale * eye)


def _constant_images() -> tuple[float, float]:
    """Images of 0, .5 and 1 everywhere: mean .5, and covariance .25 with the divisor N - 1 alone."""
    found = FeatureStatistics.of(np.repeat(np.array([0.0, 0.5, 1.0])[:, None], 12, axis=1))
    return float(found.mean[3]), float(found.covariance[0, 11])


def _merged_ranks() -> float:
    """Five ranks against one, relative."""
    x, y = _normal("ranks", 90, 16) + 1e3, _normal("ranks real", 80, 16) + 1e3
    whole, real = FeatureStatistics.of(x), FeatureStatistics.of(y)
    merged = reduce(FeatureStatistics.merge, map(FeatureStatistics.of, np.array_split(x, 5)))
    one, five = (frechet_distance_from_statistics(z, real) for z in (whole, merged))
    return abs(five / one - 1)


def _same_set() -> float:
    """64 images in 256 dimensions against themselves, where covariances are singular."""
    x = _normal("same", 64, 256)
    return frechet_distance_from_features(x, x)


def _bias_law() -> float:
    """N times the mean distance of 60 pairs of equal sets, over 2 d + d (d + 1) / 2, at d = 8 and N = 500."""
    sets = _normal("bias", 60, 2, 500, 8)
    return 500 * float(np.mean([frechet_distance_from_features(*pair) for pair in sets])) / (16 + 36)


def _influence() -> float:
    """What the influence function says of one image, against its distance made a little heavier."""
    x, y = _normal("influence", 40, 3), _normal("influence real", 50, 3) + 0.5
    found, heavier = frechet_influence(x, y), 1e-6
    weights = np.full(40, (1 - heavier) / 40)
    weights[7] += heavier
    mean = weights @ x
    centred = (x - mean) * np.sqrt(weights)[:, None]
    moved = frechet_distance(mean, centred.T @ centred * (40 / 39), y.mean(0), np.cov(y, rowvar=False))
    return float((moved - found.value) / heavier - found.first[7])


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, 1e-300))


def _spread(classes: int = 10) -> np.ndarray:
    """Every class once with probability .9, the others sharing the rest."""
    return _logits(np.full((classes, classes), 0.1 / (classes - 1)) + (0.9 - 0.1 / (classes - 1)) * np.eye(classes))


def _sorted_splits() -> float:
    return float(inception_score(np.repeat(_logits(np.eye(10)), 10, axis=0), splits=10).mean())


def _same_kernel() -> float:
    """A set against itself is below zero by a known amount: the diagonal is left out of two of three sums."""
    x = _normal("kernel", 200, 16)
    kernel = (x @ x.T / 16 + 1) ** 3
    expected = 2 * (kernel.sum() - np.trace(kernel)) / (200 * 199) - 2 * kernel.sum() / 200**2
    return float(kernel_distance(x, x).value - expected) + float(expected >= 0)


def _manifold(shift: float) -> tuple[float, ...]:
    x = _normal("manifold", 60, 4)
    found = precision_recall_density_coverage(x + shift, x)
    return float(found.precision.mean()), float(found.recall.mean()), float(found.coverage.mean())


ANSWERS = [
    KnownAnswer("Fréchet distance", "means 0 and 1, 64 dimensions", 64.0, lambda: _gaussians(1.0, 1.0)),
    KnownAnswer("Fréchet distance", "covariances I and 4 I, 64 dimensions", 64.0, lambda: _gaussians(0.0, 4.0)),
    KnownAnswer("Fréchet distance", "one dimension: N(1, 2^2) and N(-2, .5^2)", 11.25, lambda: frechet_distance([1.0], [[4.0]], [-2.0], [[0.25]])),
    KnownAnswer("Fréchet distance", "covariances that do not commute", 1.3972795044568622, lambda: frechet_distance(np.zeros(2), [[2, 1], [1, 2]], np.zeros(2), [[3, -1], [-1, 1]])),
    KnownAnswer("Fréchet distance", "a set from itself, fewer images than dimensions", 0.0, _same_set, 1e-9),
    KnownAnswer("Fréchet distance", "five ranks against one, relative", 0.0, _merged_ranks, 1e-9),
    KnownAnswer("Fréchet distance", "bias of equal sets: 2 d + d (d + 1) / 2 over N", 1.0, _bias_law, 0.1),
    KnownAnswer("Fréchet distance", "influence of one image, by derivative", 0.0, _influence, 1e-4),
    KnownAnswer("covariance", "constant images 0, .5, 1: mean and covariance", (0.5, 0.25), _constant_images),
    KnownAnswer("Inception Score", "the same for every image", 1.0, lambda: float(inception_score(np.zeros((40, 10)))[0])),
    KnownAnswer("Inception Score", "certain, ten classes alike", 10.0, lambda: float(inception_score(_logits(np.eye(10)))[0])),
    KnownAnswer("Inception Score", "probability .9, ten classes alike", math.exp(0.9 * math.log(9) + 0.1 * math.log(0.1 / 9 * 10)), lambda: float(inception_score(_spread())[0])),
    KnownAnswer("Inception Score", "sorted by class, ten splits, no shuffle", 1.0, _sorted_splits),
    KnownAnswer("kernel distance", "vectors of 0 and of 1: (1 + 1)^3 - 1", 7.0, lambda: kernel_distance(np.zeros((5, 8)), np.ones((6, 8))).value),
    KnownAnswer("kernel distance", "a set against itself: below zero, by the diagonal", 0.0, _same_kernel),
    KnownAnswer("precision, recall, coverage", "a set against itself", (1.0, 1.0, 1.0), lambda: _manifold(0.0)),
    KnownAnswer("precision, recall, coverage", "disjoint sets", (0.0, 0.0, 0.0), lambda: _manifold(100.0)),
]  # fmt: skip
