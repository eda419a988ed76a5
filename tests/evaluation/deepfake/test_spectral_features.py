"""Exact spectra of upsampled images, and shapes of the features."""

import numpy as np
import pytest
import scipy.fft

from evaluation.deepfake.features import azimuthal_average, block_dct, luminance, power_spectrum, spectral_features


def planes(*shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def test_luminance_of_colours_and_of_grey():
    image = np.zeros((3, 1, 3), np.uint8)
    image[0, 0, 0] = image[1, 0, 1] = image[2, 0, 2] = 100
    assert luminance(image)[0] == pytest.approx([29.9, 58.7, 11.4])
    grey = np.arange(6, dtype=np.uint8).reshape(2, 1, 1, 3)
    assert np.array_equal(luminance(grey), grey[:, 0]) and luminance(grey.repeat(3, 1)) == pytest.approx(grey[:, 0])


def test_zero_insertion_tiles_the_spectrum():
    small = planes(3, 8, 8)
    small -= small.mean(axis=(1, 2), keepdims=True)
    large = np.zeros((3, 16, 16))
    large[:, ::2, ::2] = small
    tiled = np.tile(power_spectrum(small), (1, 2, 2)) / 4  # the larger plane divides by four times the pixels
    assert np.abs(power_spectrum(large) - tiled).max() < 1e-10


def test_nearest_neighbour_upsampling_leaves_nothing_at_the_nyquist_frequency():
    spectrum = power_spectrum(planes(2, 8, 8).repeat(2, axis=1).repeat(2, axis=2))
    assert np.abs(spectrum[:, 8, :]).max() < 1e-25 and np.abs(spectrum[:, :, 8]).max() < 1e-25


def test_power_sums_to_the_variance():
    plane = planes(4, 6, 10)
    assert power_spectrum(plane).mean(axis=(1, 2)) == pytest.approx(plane.var(axis=(1, 2)))


def test_a_wave_falls_into_the_ring_of_its_frequency():
    x = np.arange(32)
    for cycles in (2, 8, 15):
        wave = np.cos(2 * np.pi * cycles * x / 32)[None, None, :].repeat(32, axis=1)
        rings = azimuthal_average(power_spectrum(wave))[0]
        assert rings.argmax() == int(cycles / 32 / np.sqrt(0.5) * 16)
        assert np.count_nonzero(rings > 1e-12) == 1


def test_flat_spectrum_has_flat_rings():
    assert azimuthal_average(np.ones((2, 9, 13))) == pytest.approx(np.ones((2, 4)))


def test_block_dct_of_one_block_and_of_many():
    plane = planes(2, 17, 25)
    blocks = block_dct(plane)
    assert blocks.shape == (2, 6, 8, 8)
    assert np.allclose(blocks[1, 4], scipy.fft.dctn(plane[1, 8:16, 8:16], norm="ortho"))
    assert block_dct(planes(1, 5, 6)).shape == (1, 1, 5, 5)


@pytest.mark.parametrize(
    ("shape", "features"), [((3, 1, 8, 8), 4 + 64), ((2, 3, 28, 28), 14 + 64), ((2, 1, 9, 40), 4 + 64)]
)
def test_features_are_finite_also_for_constant_images(shape, features):
    for images in (np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), (planes(*shape) * 255).astype(np.uint8)):
        found = spectral_features(images)
        assert found.shape == (shape[0], features) and np.isfinite(found).all()
