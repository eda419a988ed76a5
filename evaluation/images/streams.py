"""Mean and covariance of features that come in batches, on one process or many: no sample is kept, none counts twice.

Each rank adds the samples that it has, however many, and the ranks meet once at the end. A sampler that pads its last
batch with samples of the beginning (torch's DistributedSampler does) would bias both sets; here nothing needs padding.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike

from evaluation.images.frechet import FeatureStatistics
from launch.errors import UserError


class Summing(Protocol):
    """What is needed of `launch.runtime.Runtime`."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor: ...


class FeatureStream:
    """Count, mean and centred scatter of a stream of features, in float64."""

    def __init__(self, dimensions: int) -> None:
        self.statistics = FeatureStatistics.empty(dimensions)

    def add(self, features: ArrayLike) -> None:
        """Add a batch (N, D); an empty one changes nothing."""
        if len(np.asarray(features)):
            self.statistics = self.statistics.merge(FeatureStatistics.of(features))

    def merged(self, runtime: Summing) -> FeatureStatistics:
        """`merge_ranks` of what was added so far."""
        return merge_ranks(self.statistics, runtime)


def merge_ranks(own: FeatureStatistics, runtime: Summing) -> FeatureStatistics:
    """The statistics of the samples of all ranks together, on every rank; a rank may have none.

    n = sum n_r, m = sum n_r m_r / n, M = sum (M_r + n_r (m_r - m)(m_r - m)^T): one sum of (1 + D) numbers and one of
    D^2, both over centred quantities. Agrees with one rank that has all samples to rounding (test: 1e-9).
    """
    first = runtime.sum(torch.from_numpy(np.concatenate([[float(own.count)], own.count * own.mean]))).numpy()
    count = round(first[0])
    if count == 0:
        raise UserError("features: no rank has any samples; give at least two images")
    mean = first[1:] / count
    shift = own.mean - mean
    scatter = runtime.sum(torch.from_numpy(own.scatter + own.count * np.outer(shift, shift))).numpy()
    return FeatureStatistics(count, mean, scatter)
