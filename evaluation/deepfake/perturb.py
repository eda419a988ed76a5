"""What images go through on their way: JPEG, a change of size, blur. Pure, on uint8 images (N, C, H, W), C = 1 or 3.

Sizes stay: an image that was made smaller is brought back, so that a detector sees lost detail and not another size.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from PIL import Image


@dataclass(frozen=True)
class Perturbation:
    """One treatment at one strength, as in `jpeg:75`."""

    kind: str
    strength: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.strength:g}"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The treated images, of the same shape and type."""
        return KINDS[self.kind].apply(images, self.strength)


@dataclass(frozen=True)
class Kind:
    """A treatment: its function, what its strength is, and between which numbers it lies."""

    apply: Callable[[np.ndarray, float], np.ndarray]
    meaning: str
    low: float
    high: float


def jpeg(images: np.ndarray, quality: float) -> np.ndarray:
    """Written as JPEG at a quality from 1 to 95 and read again (libjpeg's tables, colours at half resolution)."""
    return _each(images, lambda picture: _through_jpeg(picture, int(quality)))


def resize(images: np.ndarray, factor: float) -> np.ndarray:
    """Made smaller (or larger) by a factor and brought back, bicubic with an antialiasing filter both ways."""

    def there_and_back(picture: Image.Image) -> Image.Image:
        width, height = (max(1, round(side * factor)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)

    return _each(images, there_and_back)


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian filter of `sigma` pixels, mirrored at the edges."""
    blurred = scipy.ndimage.gaussian_filter(images.astype(np.float64), (0, 0, sigma, sigma))
    return np.rint(blurred).clip(0, 255).astype(np.uint8)


KINDS = {
    "jpeg": Kind(jpeg, "quality", 1, 95),
    "resize": Kind(resize, "factor", 0.05, 4),
    "blur": Kind(blur, "sigma in pixels", 0.05, 20),
}


def parse(words: Sequence[str]) -> list[Perturbation]:
    """The perturbations of words like `jpeg:75`. ValueError names the word that is none."""
    found = []
    for word in words:
        kind, _, strength = word.partition(":")
        try:
            value = float(strength)
        except ValueError:
            value = float("nan")
        if kind not in KINDS or not KINDS[kind].low <= value <= KINDS[kind].high:
            known = "; ".join(f"{name}:{k.meaning} from {k.low:g} to {k.high:g}" for name, k in KINDS.items())
            raise ValueError(f"robustness: '{word}' is no treatment; there are {known}")
        found.append(Perturbation(kind, value))
    if doubled := {str(p) for p in found if found.count(p) > 1}:
        raise ValueError(f"robustness: '{min(doubled)}' is there twice; remove one")
    return found


def _each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    if not len(images):
        return images
    grey = images.shape[1] == 1
    planes = images[:, 0] if grey else images.transpose(0, 2, 3, 1)
    changed = np.stack([np.asarray(change(Image.fromarray(plane))) for plane in planes])
    return changed[:, None] if grey else np.ascontiguousarray(changed.transpose(0, 3, 1, 2))


def _through_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert(picture.mode)
