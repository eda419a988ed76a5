"""Features of a set of images: one pass of the extractor, over all ranks, kept in a cache that goes by content.

A cached file is named by the hash of the extractor (weights and preprocessing), of the kind of device, and of the images'
bytes: whatever changes, changes the name. Files are written aside and renamed, so that writers at the same time and kills
do no harm, and carry a hash of their content: one that is damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from data.images import ImageSet
from evaluation.images.extractors.base import Extractor, FeatureFunction
from evaluation.images.frechet import Array, as_features
from launch.files import sha256_text, write_atomic

BATCH = 64
FORMAT = 1
"""Raised when what a file holds, or how it is computed, changes."""

Beat = Callable[[int], object]
"""Called after each batch with its number of images: a watchdog, a progress display."""


class Ranks(Protocol):
    """What is needed of `launch.runtime.Runtime`."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def gather_objects(self, value: Any) -> list[Any]: ...

    def broadcast(self, value: Any) -> Any: ...


@dataclass(frozen=True)
class Features:
    """Features (N, D) and, where the extractor has classes, logits (N, C) of a set of images, in its order; float64."""

    features: Array
    logits: Array | None


def run_extractor(
    function: FeatureFunction, images: np.ndarray, batch: int = BATCH, beat: Beat | None = None
) -> Features:
    """The features of uint8 images (N, C, H, W), N >= 1, on this process, each image once."""
    vectors: list[Tensor] = []
    logits: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            found, scores = function(torch.from_numpy(np.ascontiguousarray(part)))
            vectors.append(found.double().cpu())
            if scores is not None:
                logits.append(scores.double().cpu())
            if beat:
                beat(len(part))
    return Features(torch.cat(vectors).numpy(), torch.cat(logits).numpy() if logits else None)


class FeatureSource:
    """An extractor at work on the ranks of a job. Its function is loaded when the cache does not have what is asked."""

    def __init__(self, extractor: Extractor, ranks: Ranks, cache: str = "", beat: Beat | None = None) -> None:
        self.extractor, self.ranks, self.beat = extractor, ranks, beat
        self.cache = Path(cache) if cache else None
        self.hits = 0
        """Sets that were found in the cache."""
        self._function: FeatureFunction | None = None

    def of(self, images: ImageSet) -> Features:
        """The features of a set, on every rank: each rank computes those of every world-th image."""
        path = self._path(images)
        cached = self.ranks.broadcast(read_features(path) if path and self.ranks.rank == 0 else None)
        if cached is not None:
            self.hits += 1
            return cached
        found = self._compute(images.images)
        as_features(found.features, images.source)
        if path and self.ranks.rank == 0:
            write_features(path, found)
        return found

    def _compute(self, images: np.ndarray) -> Features:
        if self._function is None:
            self._function = self.extractor.load(self.ranks.device)
        mine = images[self.ranks.rank :: self.ranks.world]
        part = run_extractor(self._function, mine, beat=self.beat) if len(mine) else None
        parts = [found for found in self.ranks.gather_objects(part) if found is not None]
        return Features(
            _interleave([p.features for p in parts]),
            None if parts[0].logits is None else _interleave([p.logits for p in parts if p.logits is not None]),
        )

    def _path(self, images: ImageSet) -> Path | None:
        if self.cache is None:
            return None
        return self.cache / f"{features_key(self.extractor, self.ranks.device, images.images)}.safetensors"


def _interleave(parts: Sequence[Array]) -> Array:
    """Rows in the order of the images from the parts of the ranks, rank r having every world-th from r on."""
    whole = np.empty((sum(map(len, parts)), parts[0].shape[1]))
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


# ---------------------------------------------------------------------------------------------- cache


def features_key(extractor: Extractor, device: torch.device, images: np.ndarray) -> str:
    """The name of the features of images in a cache: a hash of all that decides them."""
    pixels = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    return sha256_text(f"{FORMAT} {extractor.sha256} {device.type} {images.shape} {pixels}")


def write_features(path: Path, found: Features) -> None:
    """Write features aside and rename: a reader sees the whole file or none."""
    arrays = {"features": found.features} | ({} if found.logits is None else {"logits": found.logits})
    write_atomic(path, safetensors.numpy.save(arrays, metadata={"sha256": _content_hash(arrays)}))


def read_features(path: Path) -> Features | None:
    """The features in a file; None when there is none, or it is not what was written."""
    try:
        content = path.read_bytes()  # once: between two looks another writer may have renamed its file to this one
        arrays = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    if "features" not in arrays or header.get("__metadata__", {}).get("sha256") != _content_hash(arrays):
        return None
    return Features(arrays["features"], arrays.get("logits"))


def _content_hash(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
