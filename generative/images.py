"""Training images: square, of one size, uint8 in the store and in [-1, 1] in the models."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.images.sets import load_images
from launch.errors import UserError

IDX_IMAGES = b"\x00\x00\x08\x03"  # idx: unsigned bytes in three dimensions
IDX_TRAIN = ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte")
SMALLEST_SIDE = 4


def load_training_images(source: str, image_size: int | None = None) -> np.ndarray:
    """The images of a source as uint8 (N, C, S, S), C = 1 or 3.

    `source` is what `evaluate images` takes (embedded:digits, a folder of pictures, an npz file, a folder of
    `alignkit sample`), an idx file of MNIST's kind, or the folder of its training images. With `image_size` they are
    brought to that side, filtered against aliasing. UserError names what cannot be used.
    """
    images = _read(source)
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


def _read(source: str) -> np.ndarray:
    path = Path(source)
    idx = next((path / name for name in IDX_TRAIN if (path / name).is_file()), path)
    if idx.is_file() and "idx3-ubyte" in idx.name:
        return read_idx(idx)[:, None]
    return load_images(source).images


def read_idx(path: Path) -> np.ndarray:
    """The images uint8 (N, H, W) of an idx file (LeCun's MNIST format), gzipped or not."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: is not a whole gzip file ({error}); fetch it again") from None
    if content[:4] != IDX_IMAGES:
        raise UserError(f"{path}: is no idx file of images (it begins with {content[:4].hex()}); fetch it again")
    count, height, width = np.frombuffer(content[4:16], dtype=">i4").tolist()
    if len(content) != 16 + count * height * width:
        raise UserError(
            f"{path}: has {len(content)} bytes, its header announces {16 + count * height * width}; fetch it again"
        )
    return np.frombuffer(content[16:], dtype=np.uint8).reshape(count, height, width)


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 (N, C, H, W) -> uint8 (N, C, side, side), bilinear with an antialiasing filter."""
    planes = torch.from_numpy(images).float()
    resized = F.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).numpy()


def to_signed(images: np.ndarray) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return torch.from_numpy(images).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float in [-1, 1] -> uint8 0..255, rounded; what lies outside is cut."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
