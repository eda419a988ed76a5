"""The Fréchet distance extrapolated to infinitely many images.

The plug-in distance is too large by about c / N + c' / M (Chong & Forsyth 2020, arXiv 1911.07023, for the generated set).
Shrinking the generated set alone would leave the bias of the real one in the intercept; so both are cut at random to the
same share. With halves the line through the points at 1 / share = 1 and 2 meets 0 at

    FD_infinite = 2 FD(all, all) - mean of FD(half a, half a) and FD(half b, half b).

The halves are disjoint and together the whole, so that chance moves both points alike and cancels to first order. What
stays is a bias of order 1 / N^2: thirds, were they on the line, would show none, and `curvature` says how far they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike

from evaluation.images.frechet import Array, FeatureStatistics, Gaussian, as_features
from launch.errors import UserError
from launch.seeding import permutation

FEWEST = 6
"""Images in each set: a third of them is two."""


@dataclass(frozen=True)
class Extrapolation:
    """The distance at N and at infinity, and how far the mean of thirds lies from the line, as a share of its rise."""

    at_n: float
    at_infinity: float
    curvature: float


def extrapolate_frechet(generated: ArrayLike, real: ArrayLike, seed: int = 0) -> Extrapolation:
    """The Fréchet distance of features (N, D) and (M, D), each with 6 rows or more, at infinity. May be negative."""
    x, y = as_features(generated, "the generated set"), as_features(real, "the real set")
    if min(len(x), len(y)) < FEWEST:
        raise UserError(
            f"an extrapolated distance needs at least {FEWEST} images in each set; there are {len(x)} and {len(y)}"
        )
    sixths_x, sixths_y = (BlockedSet(rows, halving_ids(rows, 6, seed, which)) for which, rows in enumerate((x, y)))
    whole, halves, thirds = (mean_distance(sixths_x.parts(n), sixths_y.parts(n)) for n in (1, 2, 3))
    rise = 2 * (halves - whole)
    return Extrapolation(whole, 2 * whole - halves, (thirds - whole) / rise - 1 if rise else 0.0)


def halving_ids(rows: Array, blocks: int, seed: int, which: int) -> np.ndarray:
    """The block (N,) of each of N rows at random; blocks b = part mod count together are a part of the set."""
    ids = np.empty(len(rows), dtype=np.int64)
    ids[permutation(len(rows), seed, "extrapolation", which)] = np.arange(len(rows)) % blocks
    return ids


class BlockedSet:
    """Features (N, D) cut into blocks, `ids` (N,) counted from 0, from which the Gaussian of any blocks together is made."""

    def __init__(self, features: Array, ids: np.ndarray) -> None:
        self.blocks = int(ids.max()) + 1
        self._parts = [features[ids == block] for block in range(self.blocks)]
        # Sums of products are made once, but pay where there are more images than dimensions only
        many = len(features) > 4 * features.shape[1]
        self._statistics = [FeatureStatistics.of(part) for part in self._parts] if many else None

    def gaussian(self, blocks: Sequence[int]) -> Gaussian:
        """The Gaussian of the images of these blocks."""
        if self._statistics is None:
            return Gaussian.of_features(np.concatenate([self._parts[b] for b in blocks]))
        return Gaussian.of_statistics(reduce(FeatureStatistics.merge, (self._statistics[b] for b in blocks)))

    def parts(self, count: int, without: int = -1) -> list[Gaussian]:
        """The Gaussians of `count` parts of all blocks, block b in part b mod count; one block may be left out."""
        kept = [b for b in range(self.blocks) if b != without]
        return [self.gaussian([b for b in kept if b % count == part]) for part in range(count)]


def mean_distance(first: Sequence[Gaussian], second: Sequence[Gaussian]) -> float:
    """The mean over pairs of the squared Fréchet distance."""
    return float(np.mean([a.distance(b) for a, b in zip(first, second, strict=True)]))


def jackknife_extrapolation(
    generated: ArrayLike, real: ArrayLike, blocks: int, seed: int
) -> tuple[float, list[list[float]]]:
    """The extrapolated distance, and what it is without each block of the generated and of the real set: (2, blocks).

    `blocks` is even, each half has half of them, and a set has at least four images in each half.
    """
    rows = [as_features(features) for features in (generated, real)]
    sets = [BlockedSet(r, halving_ids(r, blocks, seed, which)) for which, r in enumerate(rows)]
    whole, halves = [s.parts(1) for s in sets], [s.parts(2) for s in sets]
    value = 2 * mean_distance(*whole) - mean_distance(*halves)
    left_out: list[list[float]] = [[], []]
    for index in (0, 1):
        for block in range(blocks):
            one, two = list(whole), list(halves)
            one[index], two[index] = sets[index].parts(1, block), sets[index].parts(2, block)
            left_out[index].append(2 * mean_distance(*one) - mean_distance(*two))
    return value, left_out
