"""Spectral features of images: the traces that upsampling layers leave behind.

Shapes: images are uint8 (N, C, H, W); features are float64 (N, F). The azimuthally averaged power spectrum is that of
Durall et al. 2020 (arXiv 2003.01826), the block DCT statistics follow Frank et al. 2020 (arXiv 2003.08685).
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Array = NDArray[np.float64]

BLOCK = 8
LUMA = (0.299, 0.587, 0.114)
GREY_LEVEL = 1.0 / 255.0
"""Added before logarithms: a coefficient below one grey level says nothing about an 8-bit image."""


def luminance(images: np.ndarray) -> Array:
    """Luma in grey levels (0 to 255), as JPEG weighs the colours (ITU-R BT.601): (..., H, W) of uint8 (..., C, H, W), C 1 or 3."""
    if images.shape[-3] == 1:
        return images[..., 0, :, :].astype(np.float64)
    return np.einsum("c,...chw->...hw", LUMA, images.astype(np.float64))


def power_spectrum(planes: Array) -> Array:
    """|FFT|^2 / (H W) of each plane less its mean: (N, H, W), zero frequency at [0, 0]."""
    centred = planes - planes.mean(axis=(1, 2), keepdims=True)
    return np.abs(scipy.fft.fft2(centred)) ** 2 / (planes.shape[1] * planes.shape[2])


def azimuthal_average(spectra: Array) -> Array:
    """Mean power in rings of equal spatial frequency, from the lowest to the corner: (N, R), R about min(H, W) / 2."""
    height, width = spectra.shape[1:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    rings = max(2, min(height, width) // 2)
    index = np.minimum((frequency / np.sqrt(0.5) * rings).astype(int), rings - 1).ravel()
    sums = np.stack([np.bincount(index, plane.ravel(), minlength=rings) for plane in spectra])
    return sums / np.maximum(np.bincount(index, minlength=rings), 1)


def block_dct(planes: Array) -> Array:
    """DCT-II coefficients of the blocks of each plane: (N, blocks, 8, 8); a rest at the right and bottom is left out.

    Planes smaller than 8 pixels make one block of their smaller side.
    """
    count, height, width = planes.shape
    size = min(BLOCK, height, width)
    rows, columns = height // size, width // size
    cut = planes[:, : rows * size, : columns * size].reshape(count, rows, size, columns, size)
    blocks = cut.transpose(0, 1, 3, 2, 4).reshape(count, rows * columns, size, size)
    return scipy.fft.dctn(blocks, axes=(2, 3), norm="ortho")


def spectral_features(images: np.ndarray) -> Array:
    """Log ring powers and mean log DCT magnitudes of each image: (N, R + 64)."""
    planes = luminance(images) / 255.0
    rings = np.log(azimuthal_average(power_spectrum(planes)) + GREY_LEVEL**2)
    magnitudes = np.log(np.abs(block_dct(planes)) + GREY_LEVEL).mean(axis=1)
    return np.concatenate([rings, magnitudes.reshape(len(images), -1)], axis=1)
