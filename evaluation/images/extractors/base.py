"""What an extractor is to the metrics: a function of images, a name, and a hash of all that the function depends on.

A score carries its extractor in its name. FID, IS, KID and MIND without more are those of the one Inception network that
defines them, by the hash of its weights; with any other they are called `fd_`, `is_`, `kd_` and `md_` and its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, device

FeatureFunction = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""uint8 images (B, C, H, W), C = 1 or 3, on the CPU -> features (B, D), and logits (B, classes) or None, anywhere."""

INCEPTION_NAMES = {"fd": "fid", "is": "is", "kd": "kid", "md": "mind"}
"""Score -> what it is called with the Inception network that defines it."""


@dataclass(frozen=True)
class Extractor:
    """A feature extractor: `load` makes its function on a device; `sha256` is of its weights and its preprocessing."""

    name: str
    sha256: str
    description: str
    load: Callable[[device], FeatureFunction]
    defines_fid: bool = False
    """Whether these are the published weights of the Inception network that FID is defined by."""

    def score_name(self, score: str) -> str:
        """The name of a score (`fd`, `is`, `kd`, `md`, `precision`, ...) with this extractor."""
        if self.defines_fid and score in INCEPTION_NAMES:
            return INCEPTION_NAMES[score]
        return f"{score}_{self.name}"


def weights_hash(weights: dict[str, Tensor]) -> str:
    """Hex SHA-256 of named tensors: their names and bytes, whatever file holds them."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def as_rgb(images: Tensor) -> Tensor:
    """uint8 (B, 1 or 3, H, W) -> (B, 3, H, W); a grey image is three equal channels."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
