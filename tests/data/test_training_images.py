"""Training images: what is read, how they are scaled, and what is refused with which sentence."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from data.embedded import digits
from data.image_files import read_idx
from data.images import load_training_images, resize
from generative.scaling import to_signed, to_uint8
from launch.errors import UserError
from tests.support import DATA


def idx_bytes(images):
    return b"\x00\x00\x08\x03" + struct.pack(">III", *images.shape) + images.tobytes()


def test_digits_are_the_embedded_ones():
    images = load_training_images("embedded:digits")
    assert images.shape == (1797, 1, 8, 8) and images.dtype == np.uint8
    assert np.array_equal(images[:, 0], digits()[0])


def test_every_grey_level_survives_the_way_to_the_model_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    signed = to_signed(levels)
    assert signed.min() == -1 and signed.max() == 1
    assert np.array_equal(to_uint8(signed), levels)
    assert to_uint8(torch.tensor([-3.0, -0.999, 0.0, 5.0])).tolist() == [0, 0, 128, 255]


def test_idx_files_plain_gzipped_and_by_folder(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6)).astype(np.uint8)
    (tmp_path / "a-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images[:3])))
    assert np.array_equal(load_training_images(str(tmp_path / "a-idx3-ubyte"))[:, 0], images)
    assert np.array_equal(load_training_images(str(tmp_path))[:, 0], images[:3])


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="MNIST is not there (ALIGNKIT_DATA)")
def test_mnist():
    images = load_training_images(str(DATA / "mnist"))
    assert images.shape == (60000, 1, 28, 28)
    assert images.mean() == pytest.approx(0.1307 * 255, rel=0.01)  # the mean that everybody normalises MNIST by


def test_resize_keeps_the_mean_and_averages_blocks():
    stripes = np.tile(np.array([0, 200], dtype=np.uint8), (1, 1, 16, 8))
    assert resize(stripes, 4).shape == (1, 1, 4, 4)
    assert abs(resize(stripes, 4).astype(int) - 100).max() <= 12  # without a filter it would be 0 or 200
    assert (resize(np.full((1, 3, 28, 28), 77, np.uint8), 8) == 77).all()
    assert load_training_images("embedded:digits", 16).shape == (1797, 1, 16, 16)


def cut(path):
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((4, 8, 8), np.uint8)))[:-9])


def labels(path):
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x01" + bytes(20)))


def short(path):
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((4, 8, 8), np.uint8))[:-1]))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (cut, "is not a whole gzip file"),
        (labels, r"is no idx file of images \(it begins with 00000801\)"),
        (short, "has 271 bytes, its header announces 272"),
    ],
)
def test_damaged_idx_files(tmp_path, make, sentence):
    path = tmp_path / "x-idx3-ubyte.gz"
    make(path)
    with pytest.raises(UserError, match=sentence):
        read_idx(path)


def picture(path, width=8, height=8):
    Image.fromarray(np.zeros((height, width), np.uint8)).save(path)


def two_sizes(folder):
    picture(folder / "a.png")
    picture(folder / "b.png", 9, 9)


def oblong(folder):
    picture(folder / "a.png", 12, 8)


def tiny(folder):
    picture(folder / "a.png", 3, 3)


def no_picture(folder):
    picture(folder / "a.png")
    (folder / "b.png").write_text("this is no picture")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: None, "holds no samples.npz and no pictures"),
        (two_sizes, r"b.png: 9x9 grey, but a.png is 8x8 grey"),
        (oblong, "has images of 12x8 pixels; crop or pad them to squares"),
        (tiny, "has images of 3x3 pixels; give an --image_size of at least 4"),
        (no_picture, "b.png: cannot be read as a picture"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, make, sentence):
    make(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_training_images(str(tmp_path))
