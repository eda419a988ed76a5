"""Best-of-n sampling: what choosing the best of n samples by a proxy gains before a judge, and what it costs in KL. Pure.

Letters: P prompts, N samples of each, n of which are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics.estimate import as_vector


def kl_bound(n: int) -> float:
    """ln n - (n - 1)/n, in nats: an upper bound on the KL divergence of best-of-n from the policy that it samples.

    Exact where no two samples have the same score, as for a continuous reward; below it otherwise (Beirami et al. 2024,
    "Theoretical guarantees on the best-of-n alignment policy"), so that it may not be quoted as the divergence itself.
    """
    if n < 1:
        raise ValueError(f"kl_bound: n is {n}; draw at least one sample")
    return math.log(n) - (n - 1) / n


def selection_weights(samples: int, n: int) -> NDArray[np.float64]:
    """For ranks 1..N, the worst first: the probability that a draw of n without replacement has this one as its best.

    C(rank - 1, n - 1) / C(N, n), by a product that does not overflow.
    """
    if not 1 <= n <= samples:
        raise ValueError(f"selection_weights: n is {n} of {samples} samples; n lies between 1 and the samples")
    weights = np.zeros(samples)
    weights[-1] = n / samples
    for rank in range(samples - 1, n - 1, -1):
        weights[rank - 1] = weights[rank] * (rank - n + 1) / rank
    return weights


def best_of_n(proxy_N: ArrayLike, judged_N: ArrayLike, n: int) -> float:
    """Expected judgement of the sample that the proxy scores highest among n, over all draws of n of these N samples.

    Unbiased for the policy's own best-of-n, with less variance than one draw or disjoint groups (as Nakano et al. 2021,
    appendix I). Samples with equal proxy scores share the weights of their ranks.
    """
    proxy, judged = as_vector(proxy_N, "proxy"), as_vector(judged_N, "judged")
    if proxy.size != judged.size:
        raise ValueError(f"best_of_n: {proxy.size} proxy scores and {judged.size} judgements; give one for each sample")
    weights = selection_weights(proxy.size, n)
    _, ranks, counts = np.unique(proxy, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    totals = np.concatenate([[0.0], np.cumsum(weights)])
    shared = (totals[ends] - totals[ends - counts]) / counts
    return float(shared[ranks] @ judged)


def curve_points(fewest: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself: where the curve is computed."""
    points = [2**k for k in range(fewest.bit_length()) if 2**k <= fewest]
    return points if points[-1] == fewest else [*points, fewest]


def best_of_n_values(proxy: Sequence[ArrayLike], judged: Sequence[ArrayLike], n: int) -> NDArray[np.float64]:
    """`best_of_n` of each prompt, (P,); prompts may have unlike numbers of samples, all of at least n."""
    return np.array([best_of_n(p, j, n) for p, j in zip(proxy, judged, strict=True)])
