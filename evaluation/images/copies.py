"""Has a generator copied its training images? Distances to the nearest of them, held against those of other real images.

Letters: N generated images, M real ones that were not trained on, T training images. Which distance is small depends on the
extractor and on T, so the yardstick is what other real images show in the same space: a share RATE of them lies as near to a
training image as a near copy does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.images import ImageSet, picture_digests
from evaluation.images.frechet import Array
from evaluation.images.manifold import nearest_neighbours
from evaluation.statistics import Estimate, auc_estimate, proportion

RATE = 0.01
FEWEST_TRAINED = 3
"""Training images that are needed: a real image that is one of them is measured to another."""


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each of some images, and how far it is."""

    index_N: np.ndarray
    distance_N: Array
    exact_N: np.ndarray
    """bool: it is the same picture, pixel by pixel."""


@dataclass(frozen=True)
class Copies:
    """What distances say of copying."""

    near_N: np.ndarray
    """bool: the image is a near copy of a training image, or the same picture."""
    share: Estimate
    """The share of near copies."""
    nearer: Estimate
    """P(an image is nearer to its nearest training image than a real image that was not trained on is)."""
    threshold: float
    false_alarms: float
    """The share of new real images that `threshold` would call near copies, in expectation."""


def nearest_training(
    images: ImageSet, features_ND: Array, training: ImageSet, trained_TD: Array, itself: bool = True
) -> Nearest:
    """The nearest training image (Euclidean, in feature space) of each image. `itself`: whether the same picture counts.

    Without it the distance is that to another picture: real images that the generator was trained on, too, then show how far
    real images lie from one another.
    """
    places, pictures = _places(picture_digests(training.images)), picture_digests(images.images)
    exact_N = np.array([picture in places for picture in pictures])
    index_NK = nearest_neighbours(features_ND, trained_TD, 2)[0]
    place_N = np.zeros(len(images), dtype=int) if itself else exact_N.astype(int)
    index_N = index_NK[np.arange(len(images)), place_N]
    if itself:  # of copies that the extractor cannot tell apart, the one that is the same picture is shown
        index_N = np.array([places.get(p, i) for p, i in zip(pictures, index_N, strict=True)])
    # not from the matrix of distances, whose rounding leaves 1e-7 between equal features
    distance_N = np.linalg.norm(features_ND - trained_TD[index_N], axis=1)
    if itself:
        distance_N[exact_N] = 0.0  # a picture has other last bits in another batch
    return Nearest(index_N, distance_N, exact_N)


def _places(pictures: list[bytes]) -> dict[bytes, int]:
    """Digest of the pixels -> the first image that has them."""
    return {picture: number for number, picture in reversed(list(enumerate(pictures)))}


def copy_threshold(real_M: Array, rate: float = RATE) -> tuple[float, float]:
    """The distance up to which an image is a near copy, and the expected share of new real images within it.

    It is the k-th smallest of the distances of M real images, k = max(1, floor(rate (M + 1))): a further image of the same
    distribution lies within it with probability k / (M + 1), whatever the distribution (the rank of one of M + 1
    exchangeable values is uniform; a conformal p-value, Vovk, Gammerman and Shafer 2005). At least 1 / (M + 1).
    """
    k = max(1, int(rate * (len(real_M) + 1) + 1e-9))
    return float(np.sort(real_M)[k - 1]), k / (len(real_M) + 1)


def find_copies(generated: Nearest, real: Nearest) -> Copies:
    """Near copies among generated images, and the test of Meehan, Chaudhuri and Dasgupta (2020, arXiv 2004.05675).

    That is the Mann-Whitney statistic of the distances: 1/2 where generated images lie as near to the training images as
    other real ones do, more where they were copied, less where they miss them.
    """
    threshold, false_alarms = copy_threshold(real.distance_N)
    near_N = (generated.distance_N <= threshold) | generated.exact_N
    labels = np.concatenate([np.ones(len(near_N), int), np.zeros(len(real.distance_N), int)])
    nearness = -np.concatenate([generated.distance_N, real.distance_N])
    return Copies(near_N, proportion(near_N), auc_estimate(labels, nearness), threshold, false_alarms)
