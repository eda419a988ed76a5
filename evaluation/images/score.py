"""The Inception Score and the order in which images are cut into its splits. N images, C classes, float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from evaluation.images.frechet import Array, as_features
from launch.errors import UserError
from launch.seeding import permutation


def shuffled(count: int, seed: int) -> np.ndarray:
    """The order (N,) in which images are cut into splits: a set sorted by class would score 1.0 in every split."""
    return permutation(count, seed, "inception_score")


def inception_score(logits: ArrayLike, splits: int = 1) -> Array:
    """exp E KL(p(y|x) || p(y)) of each split, taken in order: (splits,), each between 1 and C.

    `logits` is (N, C); shuffle first (`shuffled`). Salimans et al. 2016, arXiv 1606.03498. The field's custom of 10
    splits is meant for 50,000 images: a split of n images cannot score above n, and small ones score low.
    """
    matrix = as_features(logits, "logits")
    if not 1 <= splits <= len(matrix):
        raise UserError(f"splits is {splits} and there are {len(matrix)} images; every split needs at least one")
    shifted = matrix - matrix.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    bounds = [index * len(matrix) // splits for index in range(splits + 1)]
    return np.array([_score(log_p[a:b]) for a, b in pairwise(bounds)])


def _score(log_p: Array) -> float:
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    safe = np.where(marginal > 0, marginal, 1.0)  # a class of probability 0 everywhere adds 0 log 0 = 0
    return float(np.exp((p * (log_p - np.log(safe))).sum(axis=1).mean()))
