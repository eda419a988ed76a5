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

import numpy as np
from numpy.typing import ArrayLike

from evaluation.images.frechet import Array, Gaussian, as_features
from evaluation.statistics.moments import Moments, merge_moments
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
    return BlockedPair(x, y, 6, seed).extrapolate()


def halving_ids(rows: Array, blocks: int, seed: int, which: int) -> np.ndarray:
    """The block (N,) of each of N rows at random; blocks b = part mod count together are a part of the set."""
    ids = np.empty(len(rows), dtype=np.int64)
    ids[permutation(len(rows), seed, "extrapolation", which)] = np.arange(len(rows)) % blocks
    return ids


class BlockedSet:
    """Features (N, D) cut into blocks, `ids` (N,) counted from 0, from which the Gaussian of any blocks together is made."""

    def __init__(self, features: Array, ids: np.ndarray) -> None:
        self.rows = [features[ids == block] for block in range(int(ids.max()) + 1)]
        self._moments: dict[int, Moments] = {}

    def gaussian(self, blocks: Sequence[int]) -> Gaussian:
        """The Gaussian of the images of these blocks. Where there are more than dimensions, sums of products made once."""
        if sum(len(self.rows[b]) for b in blocks) <= self.rows[0].shape[1]:
            return Gaussian.of_features(np.concatenate([self.rows[b] for b in blocks]))
        for b in set(blocks) - set(self._moments):
            self._moments[b] = Moments.of_rows(self.rows[b])
        return Gaussian.of_moments(merge_moments(self._moments[b] for b in blocks))


class BlockedPair:
    """Both sets in random blocks: their distance, that of their halves and thirds, and what leaving a block out changes."""

    def __init__(self, generated: Array, real: Array, blocks: int, seed: int) -> None:
        self.blocks = blocks
        self.sets = [BlockedSet(x, halving_ids(x, blocks, seed, which)) for which, x in enumerate((generated, real))]
        self._parts = {count: [self._cut(which, count) for which in (0, 1)] for count in (1, 2)}
        self._halves = [a.distance(b) for a, b in zip(*self._parts[2], strict=True)]
        self._whole = self._parts[1][0][0].distance(self._parts[1][1][0])

    def _cut(self, which: int, count: int) -> list[Gaussian]:
        """The Gaussians of `count` parts of a set: block b lies in part b mod count."""
        return [self.sets[which].gaussian(range(part, self.blocks, count)) for part in range(count)]

    def extrapolate(self) -> Extrapolation:
        """From all blocks. Where they make no equal thirds, the mean of 1 / share is the thirds' place on the line."""
        thirds = np.mean([a.distance(b) for a, b in zip(self._cut(0, 3), self._cut(1, 3), strict=True)])
        place = np.mean([self.blocks / len(range(part, self.blocks, 3)) for part in range(3)])
        halves = float(np.mean(self._halves))
        rise = (float(place) - 1) * (halves - self._whole)
        curvature = (float(thirds) - self._whole) / rise - 1 if rise else 0.0
        return Extrapolation(self._whole, 2 * self._whole - halves, curvature)

    def without(self, which: int, block: int) -> float:
        """The distance at infinity when one set loses a block: of the halves, the one that has it is measured anew."""
        part = block % 2
        whole, half = ([self._parts[count][k][part % count] for k in (0, 1)] for count in (1, 2))
        whole[which] = self.sets[which].gaussian([b for b in range(self.blocks) if b != block])
        half[which] = self.sets[which].gaussian([b for b in range(part, self.blocks, 2) if b != block])
        halves = (half[0].distance(half[1]) + self._halves[1 - part]) / 2
        return 2 * whole[0].distance(whole[1]) - halves


def jackknife_extrapolation(
    generated: ArrayLike, real: ArrayLike, blocks: int, seed: int
) -> tuple[Extrapolation, list[list[float]]]:
    """The extrapolated distance, and what it is without each block of the generated and of the real set: (2, blocks).

    `blocks` is even, each half has half of them, and a set has at least four images in each half.
    """
    pair = BlockedPair(as_features(generated), as_features(real), blocks, seed)
    return pair.extrapolate(), [[pair.without(which, block) for block in range(blocks)] for which in (0, 1)]
