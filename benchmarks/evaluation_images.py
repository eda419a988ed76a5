"""Image metrics at Inception's 2048 dimensions: speed beside what is usual, agreement with torch-fidelity.

See benchmarks/evaluation.py. In the result file `*_before` is the same of commit 8234689, where the estimates made
factorisations of their own. All that a comparison times is called REPEATS times, in turns; a ratio is of the least
seconds of either side, wall and processor apart, since on a busy machine a wall clock also counts the others.

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

from evaluation.images.fidelity import fidelity_fid, fidelity_isc, fidelity_kid, fidelity_prc
from evaluation.images.frechet import frechet_distance, frechet_distance_from_features
from evaluation.images.intervals import extrapolated_estimate, frechet_estimate
from evaluation.images.kernel import kernel_distance
from evaluation.images.manifold import precision_recall_density_coverage
from evaluation.images.score import inception_score
from evaluation.images.sliced import mind
from launch.seeding import numpy_generator

KID = "kernel_inception_distance_mean"
DIMENSIONS, MANY, FEW, SUBSETS, CLASSES = 2048, 10_000, 1_000, 5_000, 1_008
REPEATS = 3


def made_features(count: int, dimensions: int, number: int, decay: float = 0.5) -> np.ndarray:
    """Features (N, D), float64; two numbers give two sets with another mean and other covariances.

    `decay` is the power with which deviations fall: at 2 the covariance has a condition number of 1e13.
    """
    generator = numpy_generator(0, "benchmark features", number)
    mixing = numpy_generator(0, "benchmark mixing").standard_normal((dimensions, dimensions)) / np.sqrt(dimensions)
    spectrum = np.arange(1, dimensions + 1) ** -decay
    rows = generator.standard_normal((count, dimensions)) * spectrum * (1 + 0.1 * number) @ mixing
    return np.exp(0.5 * rows + 0.02 * number) if decay < 1 else rows + 0.02 * number


def timed(calls: dict[str, Callable[[], float]]) -> dict[str, dict[str, Any]]:
    """Of calls made REPEATS times each, in turns: the value, the least wall and processor seconds, and all of them.

    The least, since on a shared machine others only ever add; processor seconds are of all threads of this process.
    """
    found: dict[str, dict[str, Any]] = {name: {"all_seconds": [], "all_cpu_seconds": []} for name in calls}
    for _ in range(REPEATS):
        for name, function in calls.items():
            start, cpu = time.perf_counter(), time.process_time()
            found[name]["value"] = float(function())
            found[name]["all_seconds"].append(round(time.perf_counter() - start, 6))
            found[name]["all_cpu_seconds"].append(round(time.process_time() - cpu, 6))
    return {
        name: {**entry, "seconds": min(entry["all_seconds"]), "cpu_seconds": min(entry["all_cpu_seconds"])}
        for name, entry in found.items()
    }


def ratios(found: dict[str, dict[str, Any]], **pairs: tuple[str, str]) -> dict[str, float]:
    """name=(slow, fast) -> how many times the seconds of the second the first took: `name`, and `name_cpu`."""
    return {
        f"{name}{suffix}": round(found[slow][clock] / found[fast][clock], 2)
        for name, (slow, fast) in pairs.items()
        for suffix, clock in (("", "seconds"), ("_cpu", "cpu_seconds"))
    }


def by_eigenvalues(mean1: np.ndarray, s1: np.ndarray, mean2: np.ndarray, s2: np.ndarray) -> float:
    """The distance by eigenvalues of the unsymmetric product, as torch-fidelity and torchmetrics do it."""
    overlap = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * overlap)


def by_square_root(mean1: np.ndarray, s1: np.ndarray, mean2: np.ndarray, s2: np.ndarray) -> float:
    """The distance by scipy's matrix square root of the product, as the original and pytorch-fid do it."""
    overlap = np.trace(scipy.linalg.sqrtm(s1 @ s2)).real
    return float(((mean1 - mean2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * overlap)


def compare_frechet(count: int, dimensions: int, decay: float = 0.5) -> dict[str, Any]:
    """The three ways to the same number, from covariances that are there; and ours from features."""
    x, y = (made_features(count, dimensions, number, decay) for number in (0, 1))
    inputs = (x.mean(axis=0), np.cov(x, rowvar=False), y.mean(axis=0), np.cov(y, rowvar=False))
    found = timed(
        {
            "ours": lambda: frechet_distance(*inputs),
            "ours_from_features": lambda: frechet_distance_from_features(x, y),
            "numpy_eigvals": lambda: by_eigenvalues(*inputs),
            "scipy_sqrtm": lambda: by_square_root(*inputs),
        }
    )
    best = "ours_from_features" if count <= dimensions else "ours"
    return {
        "samples": count,
        "dimensions": dimensions,
        **found,
        **ratios(found, eigvals_over_ours=("numpy_eigvals", best), sqrtm_over_ours=("scipy_sqrtm", best)),
    }


ESTIMATES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "frechet_estimate": lambda x, y: frechet_estimate(x, y, 0).value,
    "extrapolated_estimate": lambda x, y: extrapolated_estimate(x, y, 0)[1].value,
}


def compare_estimate(name: str, count: int, dimensions: int) -> dict[str, Any]:
    """What `evaluate images` computes of a Fréchet distance, from features: with its interval, or extrapolated.

    The bare eigenvalues of one distance beside it are the measure of the machine on that day.
    """
    x, y = made_features(count, dimensions, 0), made_features(count, dimensions, 1)
    inputs = (x.mean(axis=0), np.cov(x, rowvar=False), y.mean(axis=0), np.cov(y, rowvar=False))
    found = timed({name: lambda: ESTIMATES[name](x, y), "numpy_eigvals": lambda: by_eigenvalues(*inputs)})
    over = ratios(found, **{f"{name}_over_eigvals": (name, "numpy_eigvals")})
    return {"samples": count, "dimensions": dimensions, **found, **over}


def compare_kernel(count: int, dimensions: int) -> dict[str, Any]:
    """All pairs with their variance, against the customary mean over 100 subsets of 1,000 (torch-fidelity)."""
    x, y = made_features(count, dimensions, 0), made_features(count, dimensions, 1)
    options = {"kid_subset_size": min(1000, count), "verbose": False}
    found = timed(
        {
            "all_pairs": lambda: kernel_distance(x, y).value,
            "hundred_subsets": lambda: kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), **options)[KID],
            "mind": lambda: mind(x, y),
        }
    )
    found["all_pairs"]["standard_error"] = kernel_distance(x, y).standard_error
    return {"samples": count, **found, **ratios(found, subsets_over_all_pairs=("hundred_subsets", "all_pairs"))}


def compare_parity(count: int, dimensions: int) -> dict[str, Any]:
    """Our numbers and torch-fidelity's from the same features and logits, of sets that lie among each other."""
    x, y = np.split(made_features(2 * count, dimensions, 0), 2)
    y = 1.002 * y
    logits = 3 * numpy_generator(0, "benchmark logits").standard_normal((count, CLASSES))
    manifold = precision_recall_density_coverage(x, y)
    precision, recall = fidelity_prc(x, y)
    both = {
        "frechet_distance": (frechet_distance_from_features(x, y), fidelity_fid(x, y)),
        "inception_score": (float(inception_score(logits, 10).mean()), fidelity_isc(logits, 10)),
        "kernel_distance": (kernel_distance(x, y).value, fidelity_kid(x, y)),
        "precision": (float(manifold.precision.mean()), precision),
        "recall": (float(manifold.recall.mean()), recall),
    }
    rows = {
        name: {"ours": ours, "torch_fidelity": theirs, "relative_difference": abs(ours - theirs) / abs(theirs or 1.0)}
        for name, (ours, theirs) in both.items()
    }
    largest = max(row["relative_difference"] for row in rows.values())
    return {"samples": count, "dimensions": dimensions, **rows, "largest_relative_difference": largest}


COMPARISONS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "frechet_many": lambda quick: compare_frechet(*((400, 128) if quick else (MANY, DIMENSIONS))),
    "frechet_few": lambda quick: compare_frechet(*((80, 128) if quick else (FEW, DIMENSIONS))),
    "frechet_ill_conditioned": lambda quick: compare_frechet(*((400, 128) if quick else (MANY, DIMENSIONS)), decay=2.0),
    "estimate_many": lambda quick: compare_estimate("frechet_estimate", *((600, 128) if quick else (MANY, DIMENSIONS))),
    "estimate_few": lambda quick: compare_estimate("frechet_estimate", *((80, 128) if quick else (FEW, DIMENSIONS))),
    "extrapolated_many": lambda quick: compare_estimate(
        "extrapolated_estimate", *((600, 128) if quick else (MANY, DIMENSIONS))
    ),
    "extrapolated_few": lambda quick: compare_estimate(
        "extrapolated_estimate", *((80, 128) if quick else (FEW, DIMENSIONS))
    ),
    "kernel": lambda quick: compare_kernel(*((100, 64) if quick else (SUBSETS, DIMENSIONS))),
    "parity_many": lambda quick: compare_parity(*((300, 64) if quick else (SUBSETS, DIMENSIONS))),
    "parity_few": lambda quick: compare_parity(*((60, 128) if quick else (FEW, DIMENSIONS))),
}


def describe(name: str, result: dict[str, Any]) -> str:
    """A line for a person: seconds by the wall and by the processor, ratios, differences."""
    head = f"{name}, N {result['samples']}"
    if "largest_relative_difference" in result:
        return f"{head}: largest relative difference from torch-fidelity {result['largest_relative_difference']:.2g}"
    parts = [
        f"{key} {entry['seconds']:.3g} s ({entry['cpu_seconds']:.3g} s of processor)"
        for key, entry in result.items()
        if isinstance(entry, dict) and "all_seconds" in entry
    ]
    parts += [f"{key} {value:.3g}" for key, value in result.items() if "_over_" in key]
    return f"{head}: {'; '.join(parts)}"
