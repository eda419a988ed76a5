"""Sets of images: from a sampling stage's folder, an npz file, a folder of pictures, or the embedded digits."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.embedded import digits
from launch.errors import UserError
from launch.seeding import permutation

EMBEDDED = "embedded:digits"
LOSSLESS, LOSSY = (".png", ".bmp", ".tif", ".tiff"), (".jpg", ".jpeg", ".webp")
SAMPLES_FILE = "samples.npz"


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, C, H, W) with C = 1 or 3, labels int64 (N,) where known, and how the files were compressed.

    `sha256` is of the pixels of the whole source; a part of it keeps that hash.
    """

    images: np.ndarray
    labels: np.ndarray | None
    source: str
    compression: str
    sha256: str

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: np.ndarray) -> ImageSet:
        """The images of an index or mask, in its order."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels)

    def sample(self, count: int, seed: int) -> ImageSet:
        """`count` images drawn without replacement, or all when there are no more than that."""
        return self if count >= len(self) else self.take(np.sort(permutation(len(self), seed, "image subset")[:count]))


def image_set(images: np.ndarray, labels: np.ndarray | None, source: str, compression: str = "none") -> ImageSet:
    """A set with the hash of its shape and pixels."""
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(images.tobytes())
    return ImageSet(images, labels, source, compression, digest.hexdigest())


def content_fractions(images: np.ndarray, purpose: str) -> np.ndarray:
    """A number in [0, 1) for each image, from its pixels alone: float64 (N,).

    A split by this number keeps copies of one image on one side, whatever the order and the rest of the set.
    """
    hashes = (hashlib.blake2b(i.tobytes(), digest_size=8, person=purpose.encode()[:16]).digest() for i in images)
    return np.array([int.from_bytes(h, "little") / 2**64 for h in hashes])


def load_images(source: str) -> ImageSet:
    """The images of a folder (samples.npz, or pictures), an npz file, or `embedded:digits[/train|/test]`."""
    if source.startswith("embedded:"):
        return _embedded_digits(source)
    path = Path(source)
    if (path / SAMPLES_FILE).is_file():
        return _from_npz(path / SAMPLES_FILE)
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path)
    raise UserError(
        f"{source}: holds no images; give a folder of `alignkit sample`, a folder of pictures, an .npz file or {EMBEDDED}"
    )


def _embedded_digits(source: str) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; a fifth of them, by content, is the test part."""
    name, _, part = source.partition("/")
    if name != EMBEDDED or part not in ("", "train", "test"):
        raise UserError(
            f"{source}: no such embedded images; there are {EMBEDDED}, {EMBEDDED}/train and {EMBEDDED}/test"
        )
    planes, labels = digits()
    images = planes[:, None]
    found = image_set(images, labels, source)
    if not part:
        return found
    held_out = content_fractions(images, "digits split") < 0.2
    return found.take(held_out if part == "test" else ~held_out)


# ---------------------------------------------------------------------------------------------- files


def _from_npz(path: Path) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "images" not in archive:
                raise UserError(f"{path}: holds no array 'images' (there are {', '.join(archive.files)}); add it")
            images = archive["images"]
            labels = archive.get("labels")
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a whole npz file of plain arrays ({error}); write it again") from None
    if labels is not None and (labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(
            f"{path}: labels have shape {labels.shape} and type {labels.dtype}; give one integer to each image"
        )
    return image_set(_as_nchw(images, path), labels, str(path))


def _as_nchw(images: np.ndarray, path: Path) -> np.ndarray:
    """Images as uint8 (N, C, H, W), from (N, H, W), (N, C, H, W) or (N, H, W, C)."""
    if images.dtype != np.uint8:
        raise UserError(f"{path}: images are {images.dtype}, not uint8; scale them to 0..255 and round")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"{path}: images have shape {images.shape}; give (N, H, W), (N, 1 or 3, H, W) or (N, H, W, 1 or 3)"
        )
    return np.ascontiguousarray(images)


def _from_folder(folder: Path) -> ImageSet:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in LOSSLESS + LOSSY and not _hidden(p, folder))
    if not files:
        raise UserError(f"{folder}: holds no {SAMPLES_FILE} and no pictures ({', '.join(LOSSLESS + LOSSY)}); add some")
    lossy = [p for p in files if p.suffix.lower() in LOSSY]
    if lossy and len(lossy) < len(files):
        raise UserError(f"{folder}: mixes lossy files ({lossy[0].name}) with lossless ones; keep one kind")
    pictures = [_read_picture(p) for p in files]
    for path, picture in zip(files, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise UserError(
                f"{path}: {_describe(picture)}, but {files[0].name} is {_describe(pictures[0])}; bring all to one size and mode"
            )
    return image_set(np.stack(pictures), None, str(folder), "lossy" if lossy else "none")


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _read_picture(path: Path) -> np.ndarray:
    """One picture as (C, H, W): grey stays grey, a palette becomes RGB, transparency is refused."""
    try:
        with Image.open(path) as picture:
            if picture.mode in ("LA", "RGBA", "PA") or "transparency" in picture.info:
                raise UserError(f"{path}: has transparency; flatten it onto a background first")
            pixels = np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); replace or remove it") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _describe(picture: np.ndarray) -> str:
    return f"{picture.shape[2]}x{picture.shape[1]} {'grey' if picture.shape[0] == 1 else 'RGB'}"
