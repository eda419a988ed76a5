"""What images go through: shapes stay, strengths matter, and each treatment does what its name says."""

import io

import numpy as np
import pytest
from PIL import Image

from evaluation.deepfake.perturb import blur, jpeg, parse, resize
from tests.evaluation.deepfake.made import textures


def difference(a, b):
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("shape", [(3, 1, 9, 14), (2, 3, 20, 16), (0, 1, 8, 8)])
@pytest.mark.parametrize("word", ["jpeg:75", "resize:0.5", "resize:2", "blur:0.7"])
def test_shape_and_type_stay(shape, word):
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    before = images.copy()
    found = parse([word])[0](images)
    assert found.shape == shape and found.dtype == np.uint8 and np.array_equal(images, before)


@pytest.mark.parametrize(("function", "mild", "strong"), [(jpeg, 95, 20), (resize, 0.9, 0.3), (blur, 0.4, 2.0)])
def test_more_strength_changes_more(function, mild, strong):
    images = textures(20, 32)
    assert 0 < difference(function(images, mild), images) < difference(function(images, strong), images)


def test_a_jpeg_is_the_one_that_pillow_writes():
    image = textures(1, 24)[0, 0].repeat(3).reshape(24, 24, 3)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=60)
    assert np.array_equal(
        jpeg(image.transpose(2, 0, 1)[None], 60)[0], np.asarray(Image.open(stream)).transpose(2, 0, 1)
    )


def test_plain_images_are_left_alone():
    plain = np.full((2, 3, 16, 16), 117, np.uint8)
    for word in ("jpeg:75", "resize:0.5", "blur:2"):
        assert difference(parse([word])[0](plain), plain) <= 1, word


def test_blur_is_a_gaussian_and_resizing_takes_the_finest_detail():
    dot = np.zeros((1, 1, 33, 33), np.uint8)
    dot[0, 0, 16, 16] = 255
    assert blur(dot, 2.0)[0, 0, 16, 16] == round(255 / (2 * np.pi * 4))
    board = (np.indices((1, 1, 32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    assert resize(board, 0.5).std() < 0.1 * board.std()


def test_names_are_read_and_written():
    found = parse(["jpeg:75", "blur:0.50"])
    assert [str(p) for p in found] == ["jpeg:75", "blur:0.5"]
    for word in ("jpeg", "jpeg:x", "jpeg:96", "noise:3", "blur:nan"):
        with pytest.raises(ValueError, match=f"'{word}' is no treatment"):
            parse([word])
