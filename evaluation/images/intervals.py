"""Estimates with intervals for the image metrics: what a result file holds.

A plug-in Fréchet distance, and the Inception Score a little, are biased by their number of images (towards 2d + d(d+1)/2
over N for equal sets in d dimensions). The truth that these intervals cover is the expected score *at these N*, over
other draws of as many images of both sets; it is not the score of infinitely many. That is why N is part of a score's
name, and why scores of different N are not compared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evaluation.images.extrapolation import Extrapolation, jackknife_extrapolation
from evaluation.images.frechet import as_features, frechet_distance_from_features
from evaluation.images.influence import frechet_influence
from evaluation.images.kernel import KernelDistance, cmmd, kernel_distance, unit_length
from evaluation.images.manifold import Manifold, jackknife_manifold, precision_recall_density_coverage
from evaluation.images.score import inception_score, shuffled
from evaluation.images.sliced import DIRECTIONS, random_directions, sliced_distance
from evaluation.statistics import LEVEL, Estimate, combine_variances, jackknife, wilson
from evaluation.statistics.estimate import no_interval, student_interval
from evaluation.statistics.jackknife import block_ids
from launch.errors import UserError

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


def inception_estimate(
    logits: ArrayLike, splits: int, seed: int, level: float = LEVEL, blocks: int = BLOCKS
) -> Estimate:
    """The mean Inception Score over `splits` of logits (N, C) in shuffled order.

    The spread over splits, which is customary after a +-, is no interval of the mean and is not used.
    """
    rows = as_features(logits, "logits")[shuffled(len(np.asarray(logits)), seed)]
    value, n = _mean_score(rows, splits), len(rows)
    blocks = min(blocks, n // 2)
    if blocks < 2:
        return no_interval(value, n, level)
    ids = block_ids(n, blocks, seed, "inception_score")
    left_out = [_mean_score(rows[ids != block], splits) for block in range(blocks)]
    return jackknife(value, n, left_out, level=level, log=True, method=f"jackknife over {blocks} blocks")


def _mean_score(rows: np.ndarray, splits: int) -> float:
    return float(inception_score(rows, min(splits, len(rows))).mean())


def kernel_estimate(generated: ArrayLike, real: ArrayLike, level: float = LEVEL) -> Estimate:
    """The kernel distance of features (N, D) and (M, D); it may be negative and is symmetric in its error."""
    return _normal(kernel_distance(generated, real), len(np.asarray(generated)), level)


def cmmd_estimate(generated: ArrayLike, real: ArrayLike, level: float = LEVEL) -> Estimate:
    """CMMD of features (N, D) and (M, D), which are scaled to length 1 first."""
    return _normal(cmmd(unit_length(generated), unit_length(real)), len(np.asarray(generated)), level)


def _normal(found: KernelDistance, n: int, level: float) -> Estimate:
    return student_interval(found.value, found.standard_error, n, level, "variance of the U-statistic, normal", np.inf)


# ---------------------------------------------------------------------------------------------- over blocks of both sets


def mind_estimate(
    generated: ArrayLike,
    real: ArrayLike,
    seed: int,
    level: float = LEVEL,
    blocks: int = BLOCKS,
    directions: int = DIRECTIONS,
) -> Estimate:
    """MIND of features (N, D) and (M, D) along fixed directions; the interval counts the chance in both sets."""
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    blocks = min(blocks, len(x) // 2, len(y) // 2)
    ids = [block_ids(len(rows), max(blocks, 1), seed + index, "mind") for index, rows in enumerate((x, y))]
    found = sliced_distance(x, y, random_directions(x.shape[1], seed, directions), *ids)
    if blocks < 2:
        return no_interval(found.value, len(x), level)
    left_out = (found.without_generated, found.without_real)
    return jackknife(found.value, len(x), *left_out, level=level, log=True, method=f"jackknife over {blocks} blocks")


def extrapolated_estimate(
    generated: ArrayLike, real: ArrayLike, seed: int, level: float = LEVEL, blocks: int = BLOCKS // 2
) -> tuple[Extrapolation, Estimate]:
    """The Fréchet distance of features (N, D) and (M, D) at infinitely many images; it may be negative."""
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    fewest = min(len(x), len(y))
    blocks = min(blocks, fewest // 4) // 2 * 2
    if blocks < 4:  # of a half that loses a block, a block of four has to be left
        raise UserError(f"an extrapolated distance with an interval needs at least 16 images in each set, not {fewest}")
    found, left_out = jackknife_extrapolation(x, y, blocks, seed)
    method = f"jackknife over {blocks} blocks"
    return found, jackknife(found.at_infinity, len(x), *left_out, level=level, method=method)


def manifold_estimates(
    generated: ArrayLike, real: ArrayLike, seed: int, k: int = 3, level: float = LEVEL, blocks: int = BLOCKS
) -> tuple[Manifold, dict[str, Estimate]]:
    """Precision, recall, density and coverage of features (N, D) and (M, D), and the outcomes of the single images.

    One real image decides about many generated ones, so the outcomes are no independent trials. For the three shares
    the jackknife's variance v gives the number of trials that would have it, p (1 - p) / v, but no more than there are
    images, and Wilson's interval is taken with that: it is honest at 0 and 1, where a jackknife sees no spread at all.
    """
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    outcomes = precision_recall_density_coverage(x, y, k)
    units = {"precision": len(x), "recall": len(y), "density": len(x), "coverage": len(y)}
    blocks = min(blocks, len(x) // (k + 1), len(y) // (k + 1))
    values = {name: float(getattr(outcomes, name).mean()) for name in units}
    if blocks < 2:
        return outcomes, {name: no_interval(value, units[name], level) for name, value in values.items()}
    ids = [block_ids(len(rows), blocks, seed + index, "manifold") for index, rows in enumerate((x, y))]
    found = jackknife_manifold(x, y, ids[0], ids[1], k)
    estimates, method = {}, f"jackknife over {blocks} blocks"
    for column, (name, value) in enumerate(values.items()):
        left_out = [part[:, column] for part in (found.without_generated, found.without_real)]
        plain = jackknife(value, units[name], *left_out, level=level, log=name == "density", method=method)
        estimates[name] = plain if name == "density" else _share(plain, units[name], level, method)
    return outcomes, estimates


def _share(plain: Estimate, n: int, level: float, method: str) -> Estimate:
    """Wilson's interval with the number of independent trials that a jackknife's variance amounts to, at most n."""
    p, variance = plain.value, (plain.stderr or 0.0) ** 2
    # two more of either kind (Agresti & Coull 1998): at 0 and 1 nothing could be said else
    inner = (p * n + 2) / (n + 4)
    trials = max(1, int(min(n, inner * (1 - inner) / variance))) if variance > 0 else n
    limits = wilson(p * trials, trials, level)
    return Estimate(p, n, limits.stderr, limits.low, limits.high, level, f"wilson, effective n by {method}")
