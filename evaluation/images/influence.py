"""How much each image moves a Fréchet distance: the influence function, for its standard error. Pure.

The squared distance is smooth in means and covariances, with the derivative I - T in the first covariance, where T is
the optimal transport map from the first Gaussian to the second (Takatsu 2011). So one image x of the first set moves
it by, to first order and divided by N,

    h(x) = 2 (m1 - m2)^T (x - m1) + N / (N - 1) (|x - m1|^2 - (x - m1)^T T (x - m1)) - its mean.

The factorisation that gives the distance gives the map: with F1^T S2 F1 = U diag(s^2) U^T, S1 = F1 F1^T,

    T = F1^-T U diag(s) U^T F1^-1   and, from the second set to the first,   T^-1 = F1 U diag(1 / s) U^T F1^T,

so the quadratic forms are sums of squares along the axes U: no matrix root. Roots s that are lost in rounding are left
out of the second: what they add is s times a number of order 1. Letters: N samples, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from evaluation.images.frechet import Array, Comparison, Gaussian, as_features, compare


@dataclass(frozen=True)
class FrechetInfluence:
    """The distance of two sets, and the influence of each image of the first (N,) and of the second (M,), centred."""

    value: float
    first: Array
    second: Array

    @property
    def variance(self) -> tuple[float, float]:
        """What the chance in each set adds to the variance of the distance: var(h) / N, to first order."""
        return tuple(float(h.var(ddof=1)) / len(h) for h in (self.first, self.second))  # type: ignore[return-value]


def frechet_influence(first: ArrayLike, second: ArrayLike) -> FrechetInfluence:
    """The Fréchet distance of features (N, D) and (M, D), and what each row does to it."""
    sets = [as_features(first, "the first set"), as_features(second, "the second set")]
    sides = [Gaussian.of_features(x, f"the {name} set") for x, name in zip(sets, ("first", "second"), strict=True)]
    found = compare(sides[0], sides[1], axes=True)
    shift = sides[0].mean - sides[1].mean
    moved = []
    for x, side, sign in zip(sets, sides, (1.0, -1.0), strict=True):
        centred = x - side.mean
        squares = (centred**2).sum(axis=1) - _transported(found, side, centred)
        h = 2 * sign * centred @ shift + squares * len(x) / (len(x) - 1)
        moved.append(h - h.mean())
    return FrechetInfluence(found.distance, *moved)


def _transported(found: Comparison, side: Gaussian, centred: Array) -> Array:
    """x^T T x (N,) of the centred images (N, D) of one side, T being the map to the other."""
    assert found.axes is not None
    if side is found.outer:
        return side.coordinates(centred, found.axes) ** 2 @ found.roots
    kept = found.roots > found.lost
    return (centred @ (found.outer.factor @ found.axes[:, kept])) ** 2 @ (1 / found.roots[kept])
