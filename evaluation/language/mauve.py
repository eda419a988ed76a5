"""MAUVE (Pillutla et al. 2021): how close generated text is to human text, from features of the two samples.

Both samples' features are quantised together (PCA, then k-means), which gives two histograms p and q. The divergence
curve is {(exp(-c KL(q | r)), exp(-c KL(p | r)))} over the mixtures r = w p + (1 - w) q, with c = 5; MAUVE is the area
under it, in (0, 1], 1 for equal histograms. Two disjoint ones have c B(c, c + 1) = 0.00397, the least there is.

The published package (mauve-text 0.4.0, of 2024) needs faiss and downloads its feature model; the steps here are the
paper's and the defaults the package's, on any features. Values of different feature models, sample sizes or numbers
of clusters are not comparable, and small samples are biased downwards: read it beside `mauve_ceiling`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics import LEVEL, Estimate
from evaluation.statistics.intervals import z_quantile
from launch.seeding import derive_seed, numpy_generator, permutation

SCALE = 5.0
EXPLAINED = 0.9
RESTARTS = 5
MIXTURES = 1001
BOOTSTRAPS = 200
Floats = NDArray[np.float64]


def divergence_curve(p_K: Floats, q_K: Floats, scale: float = SCALE, mixtures: int = MIXTURES) -> tuple[Floats, Floats]:
    """The points (x, y) of the curve for two histograms (K,), from (0, 1) to (1, 0) or beyond the range of mixtures."""
    weights = np.linspace(1e-6, 1 - 1e-6, mixtures)[:, None]
    mixture_WK = weights * p_K + (1 - weights) * q_K
    return np.exp(-scale * _kl(q_K, mixture_WK)), np.exp(-scale * _kl(p_K, mixture_WK))


def _kl(p_K: Floats, mixture_WK: Floats) -> Floats:
    """KL(p | each mixture) in nats (W,); 0 log 0 is 0."""
    here = p_K > 0
    return (p_K[here] * np.log(p_K[here] / mixture_WK[:, here])).sum(1)


def mauve_of_histograms(p_K: Floats, q_K: Floats, scale: float = SCALE, mixtures: int = MIXTURES) -> float:
    """Area under the divergence curve of two histograms (K,), each of sum 1. Symmetric."""
    for name, histogram in (("p", p_K), ("q", q_K)):
        if histogram.ndim != 1 or (histogram < 0).any() or abs(histogram.sum() - 1) > 1e-9:
            raise ValueError(f"mauve: {name} is no histogram; give non-negative numbers of sum 1")
    x, y = divergence_curve(p_K, q_K, scale, mixtures)
    # The curve ends on the axes: below w = 0 only q, above w = 1 only p is matched.
    x, y = np.concatenate([[1.0], x, [0.0]]), np.concatenate([[0.0], y, [1.0]])
    order = np.lexsort((-y, x))
    return min(1.0, float(np.trapezoid(y[order], x[order])))


def mauve(
    features_p: Floats, features_q: Floats, seed: int, clusters: int | None = None, level: float = LEVEL
) -> Estimate:
    """MAUVE of two samples of features (n, D) and (m, D), such as a language model's hidden state after each text.

    `clusters`: a tenth of the smaller sample unless given, as in the package, but at least 2. Standard error: bootstrap
    of both histograms, the quantisation held as it is; so it leaves out how the clusters might have come out otherwise.
    ValueError for samples that are too small, not finite or of different width.
    """
    p_K, q_K = quantise(features_p, features_q, seed, clusters)
    n, m = int(p_K.sum()), int(q_K.sum())
    value = mauve_of_histograms(p_K / n, q_K / m)
    generator = numpy_generator(seed, "mauve bootstrap")
    draws = zip(
        generator.multinomial(n, p_K / n, BOOTSTRAPS), generator.multinomial(m, q_K / m, BOOTSTRAPS), strict=True
    )
    stderr = float(np.std([mauve_of_histograms(a / n, b / m, mixtures=101) for a, b in draws], ddof=1))
    half = z_quantile(level) * stderr
    method = "bootstrap of the histograms, normal"
    return Estimate(value, min(n, m), stderr, max(0.0, value - half), min(1.0, value + half), level, method)


def quantise(
    features_p: Floats, features_q: Floats, seed: int, clusters: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of either sample lie in each cluster of both: two vectors of counts (K,)."""
    from sklearn.cluster import KMeans  # a second; every evaluation of texts imports this module
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    p, q = np.asarray(features_p, np.float64), np.asarray(features_q, np.float64)
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise ValueError(f"mauve: features of shape {p.shape} and {q.shape}; give (n, D) and (m, D)")
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise ValueError("mauve: features are not finite")
    smaller = min(len(p), len(q))
    clusters = clusters or max(2, smaller // 10)
    if smaller < clusters:
        raise ValueError(f"mauve: {smaller} texts for {clusters} clusters; give more texts or fewer clusters")
    drawn = derive_seed(seed, "mauve") % 2**32
    joint = normalize(np.concatenate([p, q]))
    if len(np.unique(joint, axis=0)) > 1:
        joint = PCA(n_components=EXPLAINED, svd_solver="full", whiten=False).fit_transform(joint)
    kinds = min(clusters, len(np.unique(joint, axis=0)))
    labels = KMeans(kinds, n_init=RESTARTS, max_iter=500, random_state=drawn).fit_predict(joint)
    return np.bincount(labels[: len(p)], minlength=kinds), np.bincount(labels[len(p) :], minlength=kinds)


def halves(n: int, seed: int) -> tuple[list[int], list[int]]:
    """Two random halves of range(n): what two samples of one source look like."""
    order = permutation(n, seed, "mauve halves").tolist()
    return order[: n // 2], order[n // 2 :]
