"""Files that hold images, read as arrays: npz, pictures, and MNIST's idx; one sentence for every fault."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from launch.errors import UserError

LOSSLESS, LOSSY = (".png", ".bmp", ".tif", ".tiff"), (".jpg", ".jpeg", ".webp")
SAMPLES_FILE = "samples.npz"
IDX_IMAGES = b"\x00\x00\x08\x03"  # idx: unsigned bytes in three dimensions
IDX_LABELS = b"\x00\x00\x08\x01"  # and in one
NPZ_NAMES = (("images", "labels"), ("arr_0", "arr_1"))
"""Names of the arrays of images and labels: ours, and those of the reference batches of guided diffusion."""


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images uint8 (N, C, H, W) of an npz file and their labels (N,) where it has some."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = next((names for names in NPZ_NAMES if names[0] in archive), None)
            if names is None:
                raise UserError(f"{path}: holds no array 'images' (there are {', '.join(archive.files)}); add it")
            images = archive[names[0]]
            labels = archive.get(names[1])
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a whole npz file of plain arrays ({error}); write it again") from None
    if labels is not None and (labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(
            f"{path}: labels have shape {labels.shape} and type {labels.dtype}; give one integer to each image"
        )
    return _as_nchw(images, path), labels


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


def read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray | None, str, list[str]]:
    """The pictures of a folder in name order as uint8 (N, C, H, W), their labels, their compression, `lossy` or `none`, and
    their names within the folder.

    Labels (N,) are the numbers of the subfolders in name order, where all pictures lie in one of two or more.
    """
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
                f"{path}: {describe(picture)}, but {files[0].name} is {describe(pictures[0])}; bring all to one size and mode"
            )
    names = [path.relative_to(folder).as_posix() for path in files]
    return np.stack(pictures), _labels_by_folder(files, folder), "lossy" if lossy else "none", names


def _labels_by_folder(files: list[Path], root: Path) -> np.ndarray | None:
    parents = [path.relative_to(root).parts[:-1] for path in files]
    classes = sorted({parts[0] for parts in parents if parts})
    if len(classes) < 2 or any(len(parts) != 1 for parts in parents):
        return None
    return np.array([classes.index(parts[0]) for parts in parents], dtype=np.int64)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _read_picture(path: Path) -> np.ndarray:
    """One picture as (C, H, W): see `pixels_of`."""
    try:
        with Image.open(path) as picture:
            return pixels_of(picture, str(path))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); replace or remove it") from None


def pixels_of(picture: Image.Image, where: str) -> np.ndarray:
    """A picture as uint8 (C, H, W): grey stays grey, a palette becomes RGB, transparency is refused."""
    if picture.mode in ("LA", "RGBA", "PA") or "transparency" in picture.info:
        raise UserError(f"{where}: has transparency; flatten it onto a background first")
    pixels = np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def describe(picture: np.ndarray) -> str:
    return f"{picture.shape[2]}x{picture.shape[1]} {'grey' if picture.shape[0] == 1 else 'RGB'}"


def read_idx(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images uint8 (N, H, W) of an idx file (LeCun's MNIST format), gzipped or not, and the labels (N,) beside it."""
    content = _read_whole(path)
    if content[:4] != IDX_IMAGES:
        raise UserError(f"{path}: is no idx file of images (it begins with {content[:4].hex()}); fetch it again")
    count, height, width = np.frombuffer(content[4:16], dtype=">i4").tolist()
    if len(content) != 16 + count * height * width:
        raise UserError(
            f"{path}: has {len(content)} bytes, its header announces {16 + count * height * width}; fetch it again"
        )
    images = np.frombuffer(content[16:], dtype=np.uint8).reshape(count, height, width)
    stem = path.name.removesuffix(".gz").replace("images-idx3", "labels-idx1")
    places = (path.with_name(stem), path.with_name(f"{stem}.gz")) if "images-idx3" in path.name else ()
    beside = next((p for p in places if p.is_file()), None)
    return images, None if beside is None else _read_idx_labels(beside, count)


def _read_idx_labels(path: Path, count: int) -> np.ndarray:
    content = _read_whole(path)
    if content[:4] != IDX_LABELS or len(content) != 8 + count:
        raise UserError(
            f"{path}: is no idx file of {count} labels, as many as there are images; fetch both files again"
        )
    return np.frombuffer(content[8:], dtype=np.uint8).astype(np.int64)


def _read_whole(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: is not a whole gzip file ({error}); fetch it again") from None
