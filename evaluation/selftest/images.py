"""Known answers of the image metrics, on features."""

from __future__ import annotations

import math

import numpy as np
import torch

from evaluation.images.frechet import (
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_from_moments,
)
from evaluation.images.influence import frechet_influence
from evaluation.images.metrics import (
    cmmd,
    extrapolate_frechet,
    inception_score,
    kernel_distance,
    mind,
    precision_recall_density_coverage,
)
from evaluation.selftest.registry import KnownAnswer
from evaluation.statistics import Moments, merge_moments
from launch.seeding import numpy_generator


def _normal(purpose: str, *shape: int) -> np.ndarray:
    return numpy_generator(0, f"selftest {purpose}").standard_normal(shape)


def _gaussians(mean: float, scale: float, dimensions: int = 64) -> float:
    """Of N(0, I) and N(mean, scale I)."""
    eye = np.eye(dimensions)
    return frechet_distance(np.zeros(dimensions), eye, np.full(dimensions, mean), scale * eye)


def _constant_images() -> tuple[float, float]:
    """Images of 0, .5 and 1 everywhere: mean .5, and covariance .25 with the divisor N - 1 alone."""
    found = Moments.of_rows(np.repeat(np.array([0.0, 0.5, 1.0])[:, None], 12, axis=1))
    return float(found.mean_K[3]), float(found.covariance_KK[0, 11])


def _merged_ranks() -> float:
    """Five ranks against one, relative."""
    x, y = _normal("ranks", 90, 16) + 1e3, _normal("ranks real", 80, 16) + 1e3
    whole, real = Moments.of_rows(x), Moments.of_rows(y)
    merged = merge_moments(map(Moments.of_rows, np.array_split(x, 5)))
    one, five = (frechet_distance_from_moments(z, real) for z in (whole, merged))
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


def _published_kernel() -> float:
    """torch.randn(1000, 16) after seed 0, against itself."""
    x = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)).double().numpy()
    return kernel_distance(x, x).value


def _points_apart(distance: float) -> float:
    """CMMD of two points."""
    return cmmd(np.zeros((6, 3)), np.repeat([[distance, 0.0, 0.0]], 9, axis=0)).value


def _cmmd_by_pairs() -> float:
    """Against the mean kernels over all pairs, the diagonal with them."""
    x, y = _normal("cmmd", 20, 4), _normal("cmmd real", 15, 4) + 0.5

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / 200).mean())

    return cmmd(x, y).value / (1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))) - 1


def _mind_of_a_shift() -> tuple[float, float]:
    """In one dimension, where every direction is the axis: 3 mu^2, with as many images in both sets and without."""
    x = _normal("mind", 30, 1)
    return mind(x, x + 0.7, 0, 5), mind(np.repeat(x, 2, axis=0), x + 0.7, 0, 5)


def _mind_sees_all_moments() -> bool:
    """Signs have the mean and the covariance of normal numbers: a Fréchet distance sees nothing."""
    normal, other = _normal("moments", 4000, 16), _normal("other moments", 4000, 16)
    signs = np.sign(_normal("signs", 4000, 16))
    blind = frechet_distance_from_features(signs, normal) < 1.5 * frechet_distance_from_features(other, normal)
    return blind and mind(signs, normal, 0, 100) > 1.8 * mind(other, normal, 0, 100)


def _manifold(shift: float) -> tuple[float, ...]:
    """On whole numbers, whose distances are exact: the k-th neighbour lies on the edge of a neighbourhood, and counts."""
    x = np.rint(1000 * _normal("manifold", 60, 4))
    found = precision_recall_density_coverage(x + shift, x)
    outcomes = (found.precision, found.recall, found.density, found.coverage)
    return tuple(float(outcome.mean()) for outcome in outcomes)


def _tight_in_wide() -> bool:
    """A tight cluster inside a wide one is precise and recalls little; swapped, the other way round."""
    tight, wide = 0.1 * _normal("tight", 200, 16), 3 * _normal("wide", 200, 16)
    found, swapped = (precision_recall_density_coverage(*pair) for pair in ((tight, wide), (wide, tight)))
    precise = found.precision.mean() > 0.8 and found.recall.mean() < 0.3
    return bool(precise and swapped.recall.mean() == found.precision.mean())


def _without_bias() -> bool:
    """Of 12 pairs of equal sets the extrapolated distance is less than a tenth of the plug-in one, in the mean."""
    sets = _normal("extrapolation", 12, 2, 500, 8)
    found = [extrapolate_frechet(x, y, number) for number, (x, y) in enumerate(sets)]
    return abs(sum(f.at_infinity for f in found)) < 0.1 * sum(f.at_n for f in found)


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
    KnownAnswer("kernel distance", "vectors of .5 and of 0: 1.25^3 - 1", 0.953125, lambda: kernel_distance(np.full((8, 16), 0.5), np.zeros((5, 16))).value),
    KnownAnswer("kernel distance", "a set against itself: below zero, by the diagonal", 0.0, _same_kernel),
    KnownAnswer("kernel distance", "torch.randn(1000, 16) of seed 0 against itself", -0.0154979, _published_kernel, 1e-7),
    KnownAnswer("CMMD", "points 10 apart: 2000 (1 - exp(-1 / 2))", 2000 * (1 - math.exp(-0.5)), lambda: _points_apart(10.0)),
    KnownAnswer("CMMD", "means over all pairs, relative", 0.0, _cmmd_by_pairs),
    KnownAnswer("MIND", "moved by .7 in one dimension: 3 mu^2, and with twice the images", (1.47, 1.47), _mind_of_a_shift),
    KnownAnswer("MIND", "signs against normal numbers, where a Fréchet distance is blind", True, _mind_sees_all_moments),
    KnownAnswer("precision, recall, density, coverage", "a set against itself: density (k + 1) / k", (1.0, 1.0, 4 / 3, 1.0), lambda: _manifold(0.0)),
    KnownAnswer("precision, recall, density, coverage", "disjoint sets", (0.0, 0.0, 0.0, 0.0), lambda: _manifold(1e5)),
    KnownAnswer("precision, recall", "a tight cluster in a wide one, and swapped", True, _tight_in_wide),
    KnownAnswer("extrapolated distance", "vectors of 0 and of 1, 3 dimensions", 3.0, lambda: extrapolate_frechet(np.zeros((8, 3)), np.ones((9, 3))).at_infinity),
    KnownAnswer("extrapolated distance", "equal sets: the bias goes", True, _without_bias),
]  # fmt: skip
