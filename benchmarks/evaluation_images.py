"""Image metrics at Inception's 2048 dimensions: the Fréchet term, KID and MIND; see benchmarks/evaluation.py.

Features are made, not extracted: log-normal of a mixed Gaussian with a spectrum that falls as 1 / i, so that they are
positive, skewed and far from isotropic, as pooled activations are; and Gaussian ones that are nearly singular.
"""

from __future__ import annotations

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

KID = "kernel_inception_distance_mean"
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


def timed(calls: dict[str, tuple[Callable[[], float], int]]) -> dict[str, dict[str, Any]]:
    """Of calls with how often each is made, in turns: the value, the least wall seconds, all of them, processor seconds.

    The least, since on a shared machine others only ever add; processor seconds are of all threads of this process.
    """
    found: dict[str, dict[str, Any]] = {name: {"all_seconds": [], "all_cpu_seconds": []} for name in calls}
    for turn in range(max(repeats for _, repeats in calls.values())):
        for name, (function, repeats) in calls.items():
            if turn < repeats:
                start, cpu = time.perf_counter(), time.process_time()
                found[name]["value"] = float(function())
                found[name]["all_seconds"].append(round(time.perf_counter() - start, 6))
                found[name]["all_cpu_seconds"].append(round(time.process_time() - cpu, 6))
    return {
        name: {**entry, "seconds": min(entry["all_seconds"]), "cpu_seconds": min(entry["all_cpu_seconds"])}
        for name, entry in found.items()
    }


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
    found = timed(
        {
            "ours": (lambda: frechet_distance(*inputs), repeats),
            "ours_from_features": (lambda: frechet_distance_from_features(x, y), repeats),
            "numpy_eigvals": (lambda: by_eigenvalues(*inputs), repeats),
            "scipy_sqrtm": (lambda: by_square_root(*inputs), max(1, repeats // 2)),
        }
    )
    best = found["ours_from_features" if count <= dimensions else "ours"]
    return {
        "samples": count,
        "dimensions": dimensions,
        **found,
        "eigvals_over_ours": round(found["numpy_eigvals"]["seconds"] / best["seconds"], 2),
        "sqrtm_over_ours": round(found["scipy_sqrtm"]["seconds"] / best["seconds"], 2),
        "eigvals_over_ours_cpu": round(found["numpy_eigvals"]["cpu_seconds"] / best["cpu_seconds"], 2),
        "sqrtm_over_ours_cpu": round(found["scipy_sqrtm"]["cpu_seconds"] / best["cpu_seconds"], 2),
    }


def compare_kernel(count: int, dimensions: int) -> dict[str, Any]:
    """All pairs with their variance, against the customary mean over 100 subsets of 1,000 (torch-fidelity)."""
    x, y = made_features(count, dimensions, 0), made_features(count, dimensions, 1)
    errors: list[float] = []

    def all_pairs() -> float:
        found = kernel_distance(x, y)
        errors.append(found.standard_error)
        return found.value

    def subsets() -> float:
        options = {"kid_subset_size": min(1000, count), "verbose": False}
        return kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), **options)[KID]

    calls = {"all_pairs": (all_pairs, 1), "hundred_subsets": (subsets, 1), "mind": (lambda: mind(x, y), 1)}
    found = timed(calls)
    found["all_pairs"]["standard_error"] = errors[0]
    ratio = found["hundred_subsets"]["seconds"] / found["all_pairs"]["seconds"]
    return {"samples": count, **found, "subsets_over_all_pairs": round(ratio, 2)}


COMPARISONS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "frechet_many": lambda quick: compare_frechet(*((400, 128) if quick else (MANY, DIMENSIONS)), repeats=3),
    "frechet_few": lambda quick: compare_frechet(*((80, 128) if quick else (FEW, DIMENSIONS)), repeats=3),
    "frechet_ill_conditioned": lambda quick: compare_frechet(
        *((400, 128) if quick else (MANY, DIMENSIONS)), repeats=3, decay=2.0
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
