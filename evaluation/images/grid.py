"""Grids of images, as PNG files for a folder and a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

GAP = 1
PAPER = 255


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 images (N, C, H, W) laid out by rows: (rows * (H + 1) + 1, columns * (W + 1) + 1, C), white lines between."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), PAPER, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = GAP + index // columns * (height + GAP), GAP + index % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return sheet


def save_png(path: Path, sheet: np.ndarray, scale: int = 1) -> None:
    """Write a sheet (H, W, 1 or 3), each pixel enlarged to a square of `scale`."""
    enlarged = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(enlarged[..., 0] if enlarged.shape[2] == 1 else enlarged).save(path, optimize=True)
