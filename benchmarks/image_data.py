"""Sets of images that several benchmarks use: MNIST, and what eight generators made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.common import DATA

TEST_DIGITS = DATA / "mnist" / "t10k-images-idx3-ubyte.gz"
GENERATED = DATA / "gan_generated_digits" / "mnist_fake.npz"
PHOTOS = DATA / "real_vs_ai_photos" / "img256"


def save_images(path: Path, images: np.ndarray, **arrays: np.ndarray) -> Path:
    """An npz file that `load_images` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images, **arrays)
    return path


def images_by_generator(folder: Path) -> dict[str, Path]:
    """The 256 digits of each of eight generators (after 1 to 25 epochs), in a file each."""
    with np.load(GENERATED) as archive:
        names, images = archive["model"], archive["images"]
        return {str(m): save_images(folder / f"{m}.npz", images[names == m]) for m in np.unique(names)}
