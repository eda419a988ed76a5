"""Sets of images: from a sampling stage's folder, npz and idx files, pictures, data sets, or the embedded digits.

Any source with `::train` or `::eval` behind it is that half of it, split by content. A distance between two sets of
images needs many in both, so the halves are equal, where text holds out a tenth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.embedded import digits
from data.image_files import SAMPLES_FILE, read_folder, read_idx, read_npz
from data.image_tables import is_table, read_table
from data.named_splits import parse_source
from launch.errors import UserError
from launch.seeding import permutation

EMBEDDED = "embedded:digits"
SPLITS = ("train", "eval")
EVAL_SHARE = 0.5
IDX_TRAIN = ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte")
SMALLEST_SIDE = 4


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, C, H, W) with C = 1 or 3, labels int64 (N,) where known, and how the files were compressed.

    `sha256` is of the pixels of the whole source; a part of it keeps that hash, knows which rows of the source its images are
    (`rows` (N,); None: all as they lie) and the names of all `files` of the source, where it is a folder of pictures.
    """

    images: np.ndarray
    labels: np.ndarray | None
    source: str
    compression: str
    sha256: str
    rows: np.ndarray | None = None
    files: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def row_numbers(self) -> np.ndarray:
        """Where each image lies in the source, counted from 0: int64 (N,)."""
        return np.arange(len(self)) if self.rows is None else self.rows

    def take(self, index: np.ndarray) -> ImageSet:
        """The images of an index or mask, in its order."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels, rows=self.row_numbers[index])

    def sample(self, count: int, seed: int) -> ImageSet:
        """`count` images drawn without replacement, or all when there are no more than that."""
        return self if count >= len(self) else self.take(np.sort(permutation(len(self), seed, "image subset")[:count]))


def image_set(
    images: np.ndarray, labels: np.ndarray | None, source: str, compression: str = "none", files: Sequence[str] = ()
) -> ImageSet:
    """A set with the hash of its shape and pixels."""
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(images.tobytes())
    return ImageSet(images, labels, source, compression, digest.hexdigest(), files=files)


def picture_digests(images: np.ndarray) -> list[bytes]:
    """16 bytes for each image that only equal pixels share: what is kept of a set to look for copies, not its pixels again."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def content_fractions(images: np.ndarray, purpose: str) -> np.ndarray:
    """A number in [0, 1) for each image, from its pixels alone: float64 (N,).

    A split by this number keeps copies of one image on one side, whatever the order and the rest of the set.
    """
    hashes = (hashlib.blake2b(i.tobytes(), digest_size=8, person=purpose.encode()[:16]).digest() for i in images)
    return np.array([int.from_bytes(h, "little") / 2**64 for h in hashes])


def load_images(source: str) -> ImageSet:
    """The images of a source, or of the split that it names.

    A source is a folder (samples.npz, MNIST's training images, pictures, or what `datasets` saved), an npz file, an idx
    file of MNIST's kind, a parquet file, `hub:org/name[:config][@revision][#split]`, or `embedded:digits`: scikit-learn's
    1,797 handwritten digits, 8x8 grey. UserError names what cannot be used.
    """
    if source.startswith(f"{EMBEDDED}/"):  # how a part was named before there was one syntax for all sources
        part = {"test": "eval"}.get(part := source.removeprefix(f"{EMBEDDED}/"), part)
        raise UserError(
            f"{source}: a part is named behind two colons; write {EMBEDDED}::{part if part in SPLITS else 'train'}"
        )
    bare, split = parse_source(source, SPLITS)
    found = replace(_load_whole(bare), source=source)
    if split is None:
        return found
    held_out = content_fractions(found.images, "alignkit-eval") < EVAL_SHARE
    kept = found.take(held_out if split == "eval" else ~held_out)
    if not len(kept):
        raise UserError(f"{bare}: none of {len(found)} images is in the split '{split}'; use more images or no split")
    return kept


def _load_whole(source: str) -> ImageSet:
    if source.startswith("embedded:"):
        if source != EMBEDDED:
            raise UserError(f"{source}: no such embedded images; there are {EMBEDDED}, {EMBEDDED}::train and ::eval")
        planes, digit_labels = digits()
        return image_set(planes[:, None], digit_labels, source)
    path = Path(source)
    labels: np.ndarray | None
    if is_table(source):
        images, labels, compression = read_table(source)
        return image_set(images, labels, source, compression)
    idx = next((path / name for name in IDX_TRAIN if (path / name).is_file()), path)
    if (path / SAMPLES_FILE).is_file():
        return image_set(*read_npz(path / SAMPLES_FILE), source)
    if idx.is_file() and "idx3-ubyte" in idx.name:
        images, labels = read_idx(idx)
        return image_set(images[:, None], labels, source)
    if path.is_dir():
        images, labels, compression, files = read_folder(path)
        return image_set(images, labels, source, compression, files)
    if path.suffix == ".npz" and path.is_file():
        return image_set(*read_npz(path), source)
    raise UserError(
        f"{source}: holds no images; give a folder of `alignkit sample`, a folder of pictures, an .npz, idx or .parquet "
        f"file, a folder of `datasets`, hub:org/name or {EMBEDDED}"
    )


# ---------------------------------------------------------------------------------------------- for training


def load_training_images(source: str, image_size: int | None = None) -> np.ndarray:
    """The images of a source (see `load_images`) as uint8 (N, C, S, S), C = 1 or 3.

    With `image_size` they are brought to that side, filtered against aliasing. UserError names what cannot be used.
    """
    images = load_images(source).images
    height, width = images.shape[2:]
    if height != width:
        raise UserError(f"data: {source} has images of {width}x{height} pixels; crop or pad them to squares")
    if image_size is not None and image_size != width:
        images = resize(images, image_size)
    if images.shape[3] < SMALLEST_SIDE:
        raise UserError(
            f"data: {source} has images of {width}x{height} pixels; give an --image_size of at least {SMALLEST_SIDE}"
        )
    return images


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 (N, C, H, W) -> uint8 (N, C, side, side), bilinear with an antialiasing filter."""
    import torch  # here, so that reading images imports no torch
    import torch.nn.functional as F

    planes = torch.from_numpy(images).float()
    resized = F.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).numpy()
