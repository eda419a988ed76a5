"""Images whose traces are known, folders of them, and a job as the suite sees it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import scipy.ndimage
import torch


def textures(count, size=16, seed=0):
    """Images with a 1/f spectrum, as natural images have: uint8 (N, 1, size, size)."""
    noise = np.random.default_rng(seed).standard_normal((count, size, size))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    frequency[0, 0] = 1 / size
    planes = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    planes = 127 + 50 * (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
    return np.clip(np.round(planes), 0, 255).astype(np.uint8)[:, None]


def upsampled(count, seed, order, size=16):
    """Textures of half the size, made larger by splines of an order."""
    small = textures(count, size // 2, seed)[:, 0].astype(float)
    large = np.stack([scipy.ndimage.zoom(plane, 2, order=order, grid_mode=True, mode="grid-wrap") for plane in small])
    return np.clip(np.round(large), 0, 255).astype(np.uint8)[:, None]


def save(folder, images):
    folder.mkdir(parents=True)
    np.savez(folder / "samples.npz", images=images)
    return str(folder)


def job(folder):
    runtime = SimpleNamespace(is_main=True, device=torch.device("cpu"), barrier=lambda: None)
    quiet = {"say": lambda text: None, "beat": lambda step: None}
    return SimpleNamespace(output_dir=Path(folder), runtime=runtime, seconds=2.5, **quiet)
