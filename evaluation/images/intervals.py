"""Estimates with intervals for the image metrics: what a result file holds.

A plug-in Fréchet distance, and the Inception Score a little, are biased by their number of images (towards 2d + d(d+1)/2
over N for equal sets in d dimensions). The intervals are for the expected score *at this N*, which is why N is part of
a score's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from evaluation.images.extrapolation import BlockedSet, jackknife_extrapolation
from evaluation.images.frechet import as_features, frechet_distance_from_features
from evaluation.images.kernel import KernelDistance, cmmd, kernel_distance, unit_length
from evaluation.images.manifold import Manifold, jackknife_manifold, precision_recall_density_coverage
from evaluation.images.score import inception_score, shuffled
from evaluation.images.sliced import DIRECTIONS, random_directions, sliced_distance
from evaluation.statistics import LEVEL, Estimate, wilson
from launch.errors import UserError

BLOCKS = 20
"""Blocks of the jackknife: 20 give 19 degrees of freedom for each set."""


def block_ids(count: int, blocks: int, seed: int) -> np.ndarray:
    """The block of each image (N,): random, since files often come sorted by class."""
    ids = np.empty(count, dtype=np.int64)
    ids[shuffled(count, seed)] = np.arange(count) * blocks // count
    return ids


def _jackknife(
    value: float, n: int, leave_one_out: Sequence[Sequence[float]], level: float, blocks: int, positive: bool
) -> Estimate:
    """Variance summed over the independent sets, each a delete-a-block jackknife; Student t. On the log scale if positive."""
    f = np.log if positive and min(value, *(min(v) for v in leave_one_out)) > 0 else np.asarray
    parts = [(len(v) - 1) * float(np.var(f(np.array(v)))) for v in leave_one_out]
    variance = sum(parts)
    freedom = (
        variance**2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, leave_one_out, strict=True)) if variance else 1.0
    )
    half = float(scipy.stats.t.ppf(0.5 + level / 2, freedom)) * np.sqrt(variance)
    method = f"jackknife over {blocks} blocks"
    if f is np.log:
        low, high = value * np.exp(-half), value * np.exp(half)
        return Estimate(
            value, n, float(value * np.sqrt(variance)), float(low), float(high), level, f"{method}, log scale"
        )
    return Estimate(value, n, float(np.sqrt(variance)), float(value - half), float(value + half), level, method)


def frechet_estimate(
    generated: ArrayLike, real: ArrayLike, seed: int, level: float = LEVEL, blocks: int = BLOCKS
) -> Estimate:
    """The Fréchet distance of features (N, D) and (M, D) with an interval that counts the chance in both sets."""
    sets = [as_features(generated, "the generated set"), as_features(real, "the real set")]
    value = frechet_distance_from_features(*sets)
    n, blocks = len(sets[0]), min(blocks, len(sets[0]) // 2, len(sets[1]) // 2)
    if blocks < 2:
        return Estimate(value, n, None, None, None, level, f"none (n = {n})")
    ids = [block_ids(len(features), blocks, seed + index) for index, features in enumerate(sets)]
    blocked = [BlockedSet(features, own) for features, own in zip(sets, ids, strict=True)]
    totals = [part.parts(1)[0] for part in blocked]
    left_out: list[list[float]] = [[], []]
    for index, other in ((0, 1), (1, 0)):
        for block in range(blocks):
            left_out[index].append(blocked[index].without(block).distance(totals[other]))
    return _jackknife(value, n, left_out, level, blocks, positive=True)


def _blockwise(
    statistic: Callable[[np.ndarray], float], rows: np.ndarray, seed: int, level: float, blocks: int
) -> Estimate:
    value, n = statistic(rows), len(rows)
    blocks = min(blocks, n // 2)
    if blocks < 2:
        return Estimate(value, n, None, None, None, level, f"none (n = {n})")
    ids = block_ids(n, blocks, seed)
    left_out = [statistic(rows[ids != block]) for block in range(blocks)]
    return _jackknife(value, n, [left_out], level, blocks, positive=True)


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
    return _normal(kernel_distance(generated, real), len(np.asarray(generated)), level)


def cmmd_estimate(generated: ArrayLike, real: ArrayLike, level: float = LEVEL) -> Estimate:
    """CMMD of features (N, D) and (M, D), which are scaled to length 1 first."""
    return _normal(cmmd(unit_length(generated), unit_length(real)), len(np.asarray(generated)), level)


def _normal(found: KernelDistance, n: int, level: float) -> Estimate:
    half = float(scipy.stats.norm.ppf(0.5 + level / 2)) * found.standard_error
    method = "variance of the U-statistic, normal"
    return Estimate(found.value, n, found.standard_error, found.value - half, found.value + half, level, method)


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
    ids = [block_ids(len(rows), max(blocks, 1), seed + index) for index, rows in enumerate((x, y))]
    found = sliced_distance(x, y, random_directions(x.shape[1], seed, directions), *ids)
    if blocks < 2:
        return Estimate(found.value, len(x), None, None, None, level, f"none (n = {len(x)})")
    left_out = [found.without_generated.tolist(), found.without_real.tolist()]
    return _jackknife(found.value, len(x), left_out, level, blocks, positive=True)


def extrapolated_estimate(
    generated: ArrayLike, real: ArrayLike, seed: int, level: float = LEVEL, blocks: int = BLOCKS // 2
) -> Estimate:
    """The Fréchet distance of features (N, D) and (M, D) at infinitely many images; it may be negative."""
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    fewest = min(len(x), len(y))
    blocks = min(blocks, fewest // 4) // 2 * 2
    if blocks < 4:  # of a half that loses a block, a block of four has to be left
        raise UserError(f"an extrapolated distance with an interval needs at least 16 images in each set, not {fewest}")
    value, left_out = jackknife_extrapolation(x, y, blocks, seed)
    return _jackknife(value, len(x), left_out, level, blocks, positive=False)


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
        none = {
            key: Estimate(v, units[key], None, None, None, level, f"none (n = {units[key]})")
            for key, v in values.items()
        }
        return outcomes, none
    ids = [block_ids(len(rows), blocks, seed + index) for index, rows in enumerate((x, y))]
    jackknife = jackknife_manifold(x, y, ids[0], ids[1], k)
    estimates = {}
    for column, (name, value) in enumerate(values.items()):
        left_out = [part[:, column].tolist() for part in (jackknife.without_generated, jackknife.without_real)]
        plain = _jackknife(value, units[name], left_out, level, blocks, positive=name == "density")
        estimates[name] = plain if name == "density" else _share(plain, units[name], level, blocks)
    return outcomes, estimates


def _share(plain: Estimate, n: int, level: float, blocks: int) -> Estimate:
    """Wilson's interval with the number of independent trials that a jackknife's variance amounts to, at most n."""
    p, variance = plain.value, (plain.stderr or 0.0) ** 2
    inner = (p * n + 2) / (
        n + 4
    )  # two more of either kind (Agresti & Coull 1998): at 0 and 1 nothing could be said else
    trials = max(1, int(min(n, inner * (1 - inner) / variance))) if variance > 0 else n
    limits = wilson(p * trials, trials, level)
    method = f"wilson, effective n by jackknife over {blocks} blocks"
    return Estimate(p, n, limits.stderr, limits.low, limits.high, level, method)
