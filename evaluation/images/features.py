"""Features of a set of images: one pass of the extractor, over all ranks, kept in files that go by content.

A set is cut into blocks. A block's file is named by the hash of the extractor (weights and preprocessing), of the kind of
device, and of the images' bytes: whatever changes, changes the name. Files are written aside and renamed, so that writers
at the same time and kills do no harm, and carry a hash of their content: one that is damaged is made again.
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
BLOCK = 4 * BATCH
"""Images of a block: what a kill can lose."""
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
class Alone:
    """The ranks of a process that works by itself."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def gather_objects(self, value: Any) -> list[Any]:
        """Its own."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """To itself."""
        return value


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
    """An extractor at work on the ranks of a job, block by block. A block is written to `folder` when it is done.

    What lies there is not computed again, whichever evaluation left it or was killed meanwhile. Blocks and batches are the
    same however many ranks there are, and so are the features, to the bit. The extractor's function is loaded when needed.
    """

    def __init__(
        self,
        extractor: Extractor,
        ranks: Ranks,
        folder: Path | None = None,
        beat: Beat | None = None,
        stop: Callable[[int], object] | None = None,
    ) -> None:
        """`stop` is called on all ranks together, after each round of blocks: a request to stop is followed there."""
        self.extractor, self.ranks, self.folder, self.beat, self.stop = extractor, ranks, folder, beat, stop
        self.known = 0
        """Images whose features were there before."""
        self._function: FeatureFunction | None = None

    def of(self, images: ImageSet) -> Features:
        """The features of a set, on every rank: each rank computes every world-th of the blocks that are missing."""
        blocks = [images.images[start : start + BLOCK] for start in range(0, len(images), BLOCK)]
        paths = [self._path(block) for block in blocks]
        known = self.ranks.broadcast(_read_blocks(paths) if self.ranks.rank == 0 else None)
        self.known += sum(len(blocks[number]) for number in known)
        pending = [number for number in range(len(blocks)) if number not in known]
        new: dict[int, Features] = {}
        for start in range(0, len(pending), self.ranks.world):
            for number in pending[start + self.ranks.rank : start + self.ranks.rank + 1]:
                new[number] = self._compute(blocks[number], paths[number])
            if self.stop:
                self.stop(min(start + self.ranks.world, len(pending)))
        for part in self.ranks.gather_objects(new):
            known |= part
        found = _joined([known[number] for number in range(len(blocks))])
        as_features(found.features, images.source)
        return found

    def _compute(self, block: np.ndarray, path: Path | None) -> Features:
        if self._function is None:
            self._function = self.extractor.load(self.ranks.device)
        found = run_extractor(self._function, block, beat=self.beat)
        if path and np.isfinite(found.features).all():  # a fault is told of the whole set, by all ranks
            write_features(path, found)
        return found

    def _path(self, block: np.ndarray) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{features_key(self.extractor, self.ranks.device, block)}.safetensors"


def _read_blocks(paths: Sequence[Path | None]) -> dict[int, Features]:
    """Number -> features of the blocks that have a sound file."""
    found = {number: read_features(path) for number, path in enumerate(paths) if path}
    return {number: features for number, features in found.items() if features is not None}


def _joined(parts: Sequence[Features]) -> Features:
    """Features of parts one after the other."""
    logits = [part.logits for part in parts if part.logits is not None]
    return Features(np.concatenate([part.features for part in parts]), np.concatenate(logits) if logits else None)


# ---------------------------------------------------------------------------------------------- files


def features_key(extractor: Extractor, device: torch.device, images: np.ndarray) -> str:
    """The name of the features of images: a hash of all that decides them."""
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
