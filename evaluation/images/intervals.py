"""Estimates with intervals for the image metrics: what a result file holds.

A plug-in Fréchet distance, and the Inception Score a little, are biased by their number of images (towards 2d + d(d+1)/2
over N for equal sets in d dimensions). The truth that these intervals cover is the expected score *at these N*, over
other draws of as many images of both sets; it is not the score of infinitely many. That is why N is part of a score's
name, and why scores of different N are not compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from evaluation.images.frechet import as_features, frechet_distance_from_features
from evaluation.images.influence import frechet_influence
from evaluation.images.metrics import inception_score, kernel_distance, shuffled
from evaluation.statistics import LEVEL, Estimate, combine_variances, jackknife
from evaluation.statistics.estimate import no_interval, student_interval
from evaluation.statistics.jackknife import block_ids

BLOCKS = 20
"""Blocks of the jackknife: 20 give 19 degrees of freedom for each set."""
SUBSETS = 20
"""Disjoint pairs of subsets that tell the second-order part of a Fréchet distance's variance from the first."""


def frechet_estimate(
    generated: ArrayLike, real: ArrayLike, seed: int, level: float = LEVEL, subsets: int = SUBSETS
) -> Estimate:
    """The Fréchet distance of features (N, D) and (M, D) with an interval that counts the chance in both sets.

    The variance is that of the influence function (the delta method, in the limit of many images), less half of the
    part that is of second order. On the log scale; Student's t with the degrees of the two sets.
    """
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    found, n = frechet_influence(x, y), len(x)
    first, second = found.variance
    subsets = min(subsets, n // 2, len(y) // 2)
    if subsets < 3:
        return no_interval(found.value, n, level)
    if found.value <= 1e-12 * float((x**2).sum() / n):
        return no_interval(found.value, n, level, "the sets have the same mean and covariance")
    if first + second == 0:
        return no_interval(found.value, n, level, "every image of a set has the same features")
    kept = 1 - _second_order(x, y, first + second, subsets, seed) / (first + second)
    scale = kept / found.value**2
    variances, degrees = [first * scale, second * scale], [n - 1, len(y) - 1]
    return combine_variances(found.value, n, variances, degrees, level, log=True, method="delta, influence function")


def _second_order(x: np.ndarray, y: np.ndarray, variance: float, subsets: int, seed: int) -> float:
    """What the influence function counts too much: the second-order part b of the distance's variance.

    The variance is a / N + b / N^2. The influence function (as any jackknife: Efron and Stein 1981) counts a / N +
    2 b / N^2, and for equal distributions, where a is 0, twice the truth. The distances of K disjoint pairs of subsets
    scatter by a K / N + b K^2 / N^2, which gives b; it is kept between 0 and half of what was counted.
    """
    ids = [block_ids(len(z), subsets, seed + index, "frechet subsets") for index, z in enumerate((x, y))]
    parts = [frechet_distance_from_features(x[ids[0] == k], y[ids[1] == k]) for k in range(subsets)]
    excess = (float(np.var(parts, ddof=1)) - subsets * variance) / (subsets**2 - 2 * subsets)
    return min(max(excess, 0.0), variance / 2)


def _blockwise(
    statistic: Callable[[np.ndarray], float], rows: np.ndarray, seed: int, level: float, blocks: int
) -> Estimate:
    value, n = statistic(rows), len(rows)
    blocks = min(blocks, n // 2)
    if blocks < 2:
        return no_interval(value, n, level)
    ids = block_ids(n, blocks, seed, "inception_score")
    left_out = [statistic(rows[ids != block]) for block in range(blocks)]
    return jackknife(value, n, left_out, level=level, log=True, method=f"jackknife over {blocks} blocks")


def inception_estimate(
    logits: ArrayLike, splits: int, seed: int, level: float = LEVEL, blocks: int = BLOCKS
) -> Estimate:
    """The mean Inception Score over `splits` of logits (N, C) in shuffled order.

    The spread over splits, which is customary after a +-, is no interval of the mean and is not used.
    """
    rows = as_features(logits, "logits")[shuffled(len(np.asarray(logits)), seed)]
    return _blockwise(
        lambda part: float(inception_score(part, min(splits, len(part))).mean()), rows, seed, level, blocks
    )


def kernel_estimate(generated: ArrayLike, real: ArrayLike, level: float = LEVEL) -> Estimate:
    """The kernel distance of features (N, D) and (M, D); it may be negative and is symmetric in its error."""
    found, n = kernel_distance(generated, real), len(np.asarray(generated))
    return student_interval(found.value, found.standard_error, n, level, "delete-one jackknife, normal", np.inf)
