"""All metrics over features in one place: what users import. Each lives in a small module of its own.

Letters: N generated samples, M real ones, D feature dimensions, C classes. Everything is float64 and pure.
"""

from __future__ import annotations

from evaluation.images.extrapolation import Extrapolation, extrapolate_frechet
from evaluation.images.frechet import (
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_from_moments,
)
from evaluation.images.kernel import KernelDistance, cmmd, kernel_distance, unit_length
from evaluation.images.manifold import Manifold, precision_recall_density_coverage
from evaluation.images.score import inception_score, shuffled
from evaluation.images.sliced import mind

__all__ = [
    "Extrapolation",
    "KernelDistance",
    "Manifold",
    "cmmd",
    "extrapolate_frechet",
    "frechet_distance",
    "frechet_distance_from_features",
    "frechet_distance_from_moments",
    "inception_score",
    "kernel_distance",
    "mind",
    "precision_recall_density_coverage",
    "shuffled",
    "unit_length",
]
