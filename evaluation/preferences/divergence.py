"""KL divergence of a policy from a reference, estimated on completions that the policy sampled. Pure.

With r = log p(token) - log q(token) for policy p and reference q (Schulman 2020, "Approximating KL Divergence"):
k1 = r is unbiased and can be negative; k3 = exp(-r) - 1 + r is unbiased for the conditional KL of each token, never
negative, and usually less noisy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def sequence_divergence(policy: ArrayLike, reference: ArrayLike) -> tuple[float, float]:
    """(k1, k3) of one sequence, in nats: sums over its tokens' log-probabilities (T,) under policy and reference."""
    p, q = np.asarray(policy, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if p.shape != q.shape or p.ndim != 1:
        raise ValueError(f"sequence_divergence: shapes {p.shape} and {q.shape}; score the same tokens with both models")
    r = p - q
    return float(r.sum()), float((np.expm1(-r) + r).sum())


def divergences(
    policy: Sequence[ArrayLike], reference: Sequence[ArrayLike]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """k1 and k3 of n sequences, in nats: two vectors (n,)."""
    pairs = [sequence_divergence(p, q) for p, q in zip(policy, reference, strict=True)]
    return np.array([k1 for k1, _ in pairs]), np.array([k3 for _, k3 in pairs])
