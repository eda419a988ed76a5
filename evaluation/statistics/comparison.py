"""Two models on the same items: paired differences, their intervals and their tests. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, stdtr

from evaluation.statistics.estimate import LEVEL, Estimate, as_vector, no_interval, z_quantile
from evaluation.statistics.intervals import cluster_codes, clustered_mean, effective_size, mean
from evaluation.statistics.resampling import bootstrap
from launch.seeding import numpy_generator

PairedTest = Literal["auto", "t", "mcnemar", "mcnemar exact", "permutation", "bootstrap"]
ROUNDING = 1e-12
"""A standard error below this share of the largest difference is rounding: .3 - .1 and .4 - .2 are not the same to the bit."""


@dataclass(frozen=True)
class Difference:
    """A difference (ours minus theirs) on the same items, and the two-sided p-value of `test` for zero difference."""

    estimate: Estimate
    p_value: float | None
    test: str


def paired_difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    level: float = LEVEL,
    clusters: Sequence[object] | None = None,
    test: PairedTest = "auto",
    seed: int = 0,
) -> Difference:
    """Mean of ours - theirs over (n,) shared items; items of one cluster count as one unit.

    Pairing removes the spread between items, which unpaired tests on the same items wrongly keep. "auto" is McNemar's
    mid-p test with Bonett and Price's interval where all scores are 0 or 1 and no cluster repeats, and the paired t-test
    elsewhere, where clusters of scores that are 0 or 1 get Bonett and Price's interval at their effective number.
    "permutation" flips signs (of whole clusters) and keeps the interval of t; "bootstrap" draws items (or clusters), for
    few items with a heavy tail. `seed` is used by these two.

    Differences that are all the same have no spread to tell an interval from: there is none, and no p-value by t, but
    that of equal scores on every item, which is 1. Scores that are 0 or 1 keep their interval, and clusters without a
    spread get the p-value of the sign flips.
    """
    a, b = as_vector(ours, "ours"), as_vector(theirs, "theirs")
    if a.size != b.size:
        raise ValueError(f"paired_difference: {a.size} of ours, {b.size} of theirs; give the same items")
    if clusters is not None and len(set(clusters)) == a.size:
        clusters = None
    if test == "auto":
        flags = clusters is None and bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
        test = "mcnemar" if flags else "t"
    if test in ("mcnemar", "mcnemar exact"):
        if clusters is not None:
            raise ValueError("paired_difference: McNemar's test has no clusters; use 't' or 'permutation'")
        return _mcnemar_difference(a, b, level, exact=test == "mcnemar exact")
    if test == "bootstrap":
        return _bootstrap_difference(a - b, clusters, level, seed)
    found = _t_difference(a - b, clusters, level)
    known = found.estimate.n > 1
    if known and clusters is not None and bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all()):
        found = replace(found, estimate=_clustered_bonett_price(a - b, found.estimate))
        test = "permutation" if found.p_value is None else test
    if known and test == "permutation":
        name = f"paired permutation{', clustered' if clusters is not None else ''}"
        return replace(found, p_value=sign_flip_test(_cluster_sums(a - b, clusters), seed, "paired"), test=name)
    return found


def _t_difference(d: NDArray[np.float64], clusters: Sequence[object] | None, level: float) -> Difference:
    estimate = mean(d, level) if clusters is None else clustered_mean(d, clusters, level)
    test = "paired t" if clusters is None else "paired t, clustered"
    if estimate.stderr is None:
        return Difference(estimate, None, test)
    if estimate.stderr <= ROUNDING * float(np.abs(d).max()):
        why = "the differences are all the same" if clusters is None else "the clusters' differences are all the same"
        return Difference(no_interval(estimate.value, estimate.n, level, why), None if d.any() else 1.0, test)
    p_value = 2 * stdtr(estimate.n - 1, -abs(estimate.value) / estimate.stderr)
    return Difference(estimate, float(p_value), test)


def _clustered_bonett_price(d: NDArray[np.float64], clustered: Estimate) -> Estimate:
    """Bonett and Price's interval of clustered differences d (n,) of -1, 0, 1, at their effective number.

    The t interval of few clusters that (almost) never differ has (almost) no width. `clustered` is that estimate; n
    stays the number of clusters.
    """
    ours, theirs = float((d > 0).mean()), float((d < 0).mean())
    variance = ours + theirs - (ours - theirs) ** 2
    size = effective_size(variance, clustered.stderr or 0.0, clustered.n, d.size, clustered.level)
    found = bonett_price(ours * size, theirs * size, size, clustered.level)
    return replace(found, value=clustered.value, n=clustered.n, method="Bonett-Price, clustered")


def _cluster_sums(d: NDArray[np.float64], clusters: Sequence[object] | None) -> NDArray[np.float64]:
    return d if clusters is None else np.bincount(cluster_codes(clusters), weights=d).astype(np.float64)


def _bootstrap_difference(
    d: NDArray[np.float64], clusters: Sequence[object] | None, level: float, seed: int
) -> Difference:
    """Interval and p-value of one bootstrap: p is twice the smaller share of resamples on either side of 0."""
    codes = np.arange(d.size) if clusters is None else cluster_codes(clusters)
    sums, sizes = np.bincount(codes, weights=d), np.bincount(codes).astype(float)
    drawn: list[NDArray[np.float64]] = []

    def statistic(s: NDArray[np.float64], m: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn.append(s.sum(1) / m.sum(1))
        return drawn[-1]

    estimate = bootstrap(statistic, sums, sizes, seed=seed, purpose="paired", level=level, resamples=10_000)
    test = "paired bootstrap" if clusters is None else "paired bootstrap, clustered"
    if estimate.low is None:
        return Difference(estimate, None, test)
    if np.ptp(sums / sizes) <= ROUNDING * float(np.abs(d).max()):
        found = no_interval(estimate.value, sums.size, level, "the same difference in every resample")
        return Difference(found, None if sums.any() else 1.0, test)
    resampled = np.concatenate(drawn[1:])
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return Difference(replace(estimate, n=sums.size), min(1.0, 2 * (tail + 1) / (resampled.size + 1)), test)


# ---------------------------------------------------------------------------------------------- right or wrong


def _mcnemar_difference(a: NDArray[np.float64], b: NDArray[np.float64], level: float, exact: bool) -> Difference:
    if not (np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all()):
        raise ValueError("paired_difference: McNemar's test needs scores that are 0 or 1; use 't' or 'permutation'")
    test = "McNemar, exact" if exact else "McNemar, mid-p"
    if a.size < 2:
        return Difference(no_interval(float(a[0] - b[0]), 1, level), None, test)
    only_ours, only_theirs = int((a > b).sum()), int((b > a).sum())
    p_value = (mcnemar_exact if exact else mcnemar_mid_p)(only_ours, only_theirs)
    return Difference(bonett_price(only_ours, only_theirs, a.size, level), p_value, test)


def _check_discordant(only_ours: float, only_theirs: float) -> None:
    if only_ours < 0 or only_theirs < 0:
        raise ValueError(f"mcnemar: counts {only_ours}, {only_theirs} must not be negative")


def _count_discordant(only_ours: int, only_theirs: int) -> int:
    _check_discordant(only_ours, only_theirs)
    if only_ours % 1 or only_theirs % 1:
        raise ValueError(f"mcnemar: {only_ours}, {only_theirs} are no counts")
    return only_ours + only_theirs


def mcnemar_exact(only_ours: int, only_theirs: int) -> float:
    """Two-sided exact McNemar p-value from the discordant counts: binomial(b + c, 1/2). 1 without discordant items."""
    discordant = _count_discordant(only_ours, only_theirs)
    return min(1.0, 2 * _tail(min(only_ours, only_theirs), discordant))


def mcnemar_mid_p(only_ours: int, only_theirs: int) -> float:
    """McNemar's mid-p: the exact p-value less half the probability of what was seen (twice, for both sides).

    The exact test rejects far less often than its level says; the mid-p comes close to it and seldom exceeds it
    (Fagerland, Lydersen and Laake 2013).
    """
    discordant = _count_discordant(only_ours, only_theirs)
    if only_ours == only_theirs:
        return 1.0
    fewer = min(only_ours, only_theirs)
    return _tail(fewer, discordant) + _tail(fewer - 1, discordant)


def _tail(at_most: int, discordant: int) -> float:
    """The chance of at most so many heads in so many tosses."""
    return float(bdtr(at_most, discordant, 0.5)) if at_most >= 0 else 0.0


def bonett_price(only_ours: float, only_theirs: float, n: float, level: float = LEVEL) -> Estimate:
    """Difference of two paired proportions, (b - c) / n, with Bonett and Price's (2012) adjusted Wald interval.

    One item is added to either discordant count and two to n: it keeps a width where the two never differ, and covers
    at its level for small n, where the plain interval of b - c does not. `stderr` is the plain one. Counts may be
    fractions: those of an effective number of items.
    """
    _check_discordant(only_ours, only_theirs)
    if n < 1 or only_ours + only_theirs > n * (1 + ROUNDING):
        raise ValueError(f"bonett_price: {only_ours} and {only_theirs} discordant items of {n}")
    value, p, q = (only_ours - only_theirs) / n, (only_ours + 1) / (n + 2), (only_theirs + 1) / (n + 2)
    half = z_quantile(level) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    stderr = math.sqrt(max(0.0, (only_ours + only_theirs) / n - value**2) / n)
    return Estimate(value, int(n), stderr, max(-1.0, p - q - half), min(1.0, p - q + half), level, "Bonett-Price")


# ---------------------------------------------------------------------------------------------- permutation


def sign_flip_test(differences: ArrayLike, seed: int, purpose: str, resamples: int = 10_000) -> float:
    """Two-sided permutation p-value for mean zero: signs of (n,) paired differences are exchangeable under no effect.

    All 2^n signs when they are no more than `resamples`; else random ones with the (hits + 1) / (resamples + 1) of
    Phipson and Smyth (2010), which is never zero.
    """
    x = as_vector(differences, "differences")
    observed = abs(float(x.sum()))
    tolerance = 1e-12 * float(np.abs(x).sum())
    if 2**x.size <= resamples:
        bits = np.arange(2**x.size)[:, None] >> np.arange(x.size) & 1
        return float((np.abs((1 - 2 * bits) @ x) >= observed - tolerance).mean())
    generator, hits, rows = numpy_generator(seed, f"sign flips {purpose}"), 0, max(1, 4_000_000 // x.size)
    for start in range(0, resamples, rows):
        signs = 1 - 2 * generator.integers(0, 2, size=(min(rows, resamples - start), x.size), dtype=np.int8)
        hits += int((np.abs(signs @ x) >= observed - tolerance).sum())
    return (hits + 1) / (resamples + 1)
