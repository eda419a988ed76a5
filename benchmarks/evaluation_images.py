"""Image metrics at Inception's 2048 dimensions: the Fréchet term, KID and MIND; see benchmarks/evaluation.py.

Features are made, not extracted: log-normal of a mixed Gaussian with a spectrum that falls as 1 / i, so that they are
positive, skewed and far from isotropic, as pooled activations are; and Gaussian ones that are nearly singular.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from evaluation.images.frechet import FeatureStatistics, frechet_distance, frechet_distance_from_features
from evaluation.images.kernel import kernel_distance
from evaluation.images.sliced import mind
from launch.seeding import numpy_generator

ROUTES = ("ours_from_features", "numpy_eigvals", "scipy_sqrtm")
DIMENSIONS, MANY, FEW, SUBSETS = 2048, 10_000, 1_000, 5_000


def made_features(count: int, dimensions: int, number: int, decay: float = 0.5) -> np.ndarray:
    """Features (N, D), float64; two numbers give two sets with another mean and other covariances.

    `decay` is the power with which deviations fall: at 2 the covariance has a condition number of 1e13.
    """
    generator = numpy_generator(0, "benchmark features", number)
    mixing = numpy_generator(0, "benchmark mixing").standard_normal((dimensions, dimensions)) / np.sqrt(dimensions)
    spectrum = np.arange(1, dimensions + 1) ** -decay
    rows = generator.standard_normal((count, dimensions)) * spectrum * (1 + 0.1 * number) @ mixing
    return np.exp(0.5 * rows + 0.02 * number) if decay < 1 else rows + 0.02 * number


def timed(function: Callable[[], float], repeats: int) -> dict[str, Any]:
    """The value of a call, its median wall seconds and all of them."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = function()
        seconds.append(round(time.perf_counter() - start, 6))
    return {"value": float(value), "seconds": statistics.median(seconds), "all_seconds": seconds}


def by_eigenvalues(mean1: np.ndarray, s1: np.ndarray, mean2: np.ndarray, s2: np.ndarray) -> float:
    """The distance by eigenvalues of the unsymmetric product, as torch-fidelity and torchmetrics do it."""
    overlap = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * overlap)


def by_square_root(mean1: np.ndarray, s1: np.ndarray, mean2: np.ndarray, s2: np.ndarray) -> float:
    """The distance by scipy's matrix square root of the product, as the original and pytorch-fid do it."""
    overlap = np.trace(scipy.linalg.sqrtm(s1 @ s2)).real
    return float(((mean1 - mean2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * overlap)


def compare_frechet(count: int, dimensions: int, repeats: int, decay: float = 0.5) -> dict[str, Any]:
    """The three ways to the same number, from covariances that are there; and ours from features."""
    x, y = (made_features(count, dimensions, number, decay) for number in (0, 1))
    first, second = FeatureStatistics.of(x), FeatureStatistics.of(y)
    inputs = (first.mean, first.covariance, second.mean, second.covariance)
    found = {
        "ours": timed(lambda: frechet_distance(*inputs), repeats),
        "ours_from_features": timed(lambda: frechet_distance_from_features(x, y), repeats),
        "numpy_eigvals": timed(lambda: by_eigenvalues(*inputs), max(1, repeats // 2)),
        "scipy_sqrtm": timed(lambda: by_square_root(*inputs), max(1, repeats // 2)),
        "ours_again": timed(lambda: frechet_distance(*inputs), repeats),
    }
    ours = max(found["ours"]["seconds"], found["ours_again"]["seconds"])
    best = found["ours_from_features"]["seconds"] if count <= dimensions else ours
    return {
        "samples": count,
        "dimensions": dimensions,
        **found,
        "eigvals_over_ours": round(found["numpy_eigvals"]["seconds"] / best, 2),
        "sqrtm_over_ours": round(found["scipy_sqrtm"]["seconds"] / best, 2),
    }


def compare_kernel(count: int, dimensions: int) -> dict[str, Any]:
    """All pairs with their variance, against the customary mean over 100 subsets of 1,000 (torch-fidelity)."""
    x, y = made_features(count, dimensions, 0), made_features(count, dimensions, 1)
    size = min(1000, count)
    theirs = timed(
        lambda: kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), kid_subset_size=size, verbose=False)[
            "kernel_inception_distance_mean"
        ],
        1,
    )
    errors: list[float] = []

    def all_pairs() -> float:
        found = kernel_distance(x, y)
        errors.append(found.standard_error)
        return found.value

    ours = timed(all_pairs, 1)
    return {
        "samples": count,
        "all_pairs": {**ours, "standard_error": errors[0]},
        "hundred_subsets": theirs,
        "subsets_over_all_pairs": round(theirs["seconds"] / ours["seconds"], 2),
        "mind": timed(lambda: mind(x, y), 1),
    }


COMPARISONS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "frechet_many": lambda quick: compare_frechet(*((400, 128) if quick else (MANY, DIMENSIONS)), repeats=2),
    "frechet_few": lambda quick: compare_frechet(*((80, 128) if quick else (FEW, DIMENSIONS)), repeats=2),
    "frechet_ill_conditioned": lambda quick: compare_frechet(
        *((400, 128) if quick else (MANY, DIMENSIONS)), repeats=2, decay=2.0
    ),
    "kernel": lambda quick: compare_kernel(*((100, 64) if quick else (SUBSETS, DIMENSIONS))),
}


def describe(name: str, result: dict[str, Any]) -> str:
    """A line for a person."""
    if name == "kernel":
        return (
            f"KID, N {result['samples']}: all pairs {result['all_pairs']['seconds']:.3g} s, 100 subsets "
            f"{result['hundred_subsets']['seconds']:.3g} s; MIND {result['mind']['seconds']:.3g} s"
        )
    seconds = {key: f"{result[key]['seconds']:.3g} s" for key in ("ours", *ROUTES)}
    return (
        f"{name}, N {result['samples']}, D {result['dimensions']}: ours {seconds['ours']} (from features "
        f"{seconds['ours_from_features']}), eigvals {seconds['numpy_eigvals']} ({result['eigvals_over_ours']}x), "
        f"sqrtm {seconds['scipy_sqrtm']} ({result['sqrtm_over_ours']}x)"
    )
