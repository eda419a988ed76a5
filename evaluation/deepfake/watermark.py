"""An invisible mark in the images that alignkit's generators write, and its detection.

The mark is made by `blind-watermark` (MIT; DWT, DCT and SVD of 8x8 pixels, one bit each, quantisation of the two largest
singular values). It goes into the luminance alone, and what changes there is added to all channels. Which bits, and
in which order coefficients are taken, follows from a key, any text. Nobody who lacks the key sees more than noise of
about two grey levels; whoever has it can also remove the mark.

A mark is found by counting: of an image's n blocks, how many say the bit that the key expects? By chance half of them do.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from functools import lru_cache
from typing import Any

import numpy as np

from evaluation.deepfake.features import luminance
from launch.errors import UserError
from launch.seeding import derive_seed, numpy_generator

FALSE_ALARMS = 0.01
"""Share of images without a mark that may be called marked, were their blocks fair coins."""
ROUNDS = 5
"""How often a mark is put in until all bits are there: black and white cut some off. Of MNIST's digits at 28x28 27% had
enough bits after one round and all after five."""
BLOCK = 8
INSTALL = "pip install 'alignkit[watermark]'"


def embed_watermark(images: np.ndarray, key: str) -> np.ndarray:
    """uint8 images (N, C, H, W) with the mark of a key. UserError for images that are too small to show one."""
    _check_room(images.shape)
    marked = images.copy()
    for _ in range(ROUNDS):
        matches, blocks = count_matches(marked, key)
        for index in np.flatnonzero(matches < blocks):
            plane = luminance(marked[index])
            change = _marked_plane(plane, key) - plane
            marked[index] = np.rint(marked[index] + change[None]).clip(0, 255)
    return marked


def count_matches(images: np.ndarray, key: str) -> tuple[np.ndarray, int]:
    """How many blocks of each image say what the key expects, (N,), and how many blocks there are."""
    _check_room(images.shape)
    blocks = _blocks(images.shape[2:])
    expected = np.resize(_bits(key, blocks - 1), blocks)  # the library counts bits round, and wants fewer than blocks
    found = [(_raw_bits(luminance(image), key) == expected).sum() for image in images]
    return np.array(found, dtype=np.int64), blocks


def detect_watermark(images: np.ndarray, key: str) -> np.ndarray:
    """Whether the mark of a key is found in each image: bool (N,), with FALSE_ALARMS by chance."""
    matches, blocks = count_matches(images, key)
    return matches >= matches_needed(blocks)


def matches_needed(blocks: int) -> int:
    """The least number of matches that at most FALSE_ALARMS of unmarked images reach: blocks + 1 where none is enough."""
    from scipy.stats import binom  # a second, and `sample` imports this module

    return int(binom.isf(FALSE_ALARMS, blocks, 0.5)) + 1


def _blocks(shape: tuple[int, ...]) -> int:
    return int(np.prod([(side + 1) // 2 // (BLOCK // 2) for side in shape]))


def _check_room(shape: tuple[int, ...]) -> None:
    blocks = _blocks(shape[2:])
    if matches_needed(blocks) > blocks:
        raise UserError(
            f"watermark: images of {shape[3]}x{shape[2]} pixels have room for {blocks} bits, too few to tell a mark from "
            "chance; make images of 24x24 pixels or more, or leave the mark out"
        )


def _bits(key: str, count: int) -> np.ndarray:
    """The bits of a key, as many ones as zeros (or one more): a plain image, which says the same everywhere, has half."""
    bits = np.arange(count) % 2
    return bits[numpy_generator(_number(key), "watermark bits").permutation(count)]


def _number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")


def _raw_bits(plane: np.ndarray, key: str) -> np.ndarray:
    """What each block says: 0 or 1 (blocks,)."""
    core = _read(plane, key)
    coefficients, orders = core.ca_block[0], _orders(key, core.block_num)
    said = [core.block_get_wm((coefficients[at], orders[i])) for i, at in enumerate(core.block_index)]
    return np.asarray(np.array(said) > 0.5, dtype=np.int64)


def _marked_plane(plane: np.ndarray, key: str) -> np.ndarray:
    """The luminance (H, W) with the mark, not rounded."""
    import pywt  # type: ignore[import-untyped]

    core = _read(plane, key)
    core.read_wm(_bits(key, core.block_num - 1))
    blocks, orders = core.ca_block[0], _orders(key, core.block_num)
    for i, at in enumerate(core.block_index):
        blocks[at] = core.block_add_wm((blocks[at], orders[i], i))
    rows, columns = core.part_shape
    coefficients = core.ca[0].copy()
    coefficients[:rows, :columns] = blocks.transpose(0, 2, 1, 3).reshape(rows, columns)
    return pywt.idwt2((coefficients, core.hvd[0]), "haar")[: plane.shape[0], : plane.shape[1]]


def _read(plane: np.ndarray, key: str) -> Any:
    """The library's core with the wavelet coefficients of a plane (H, W), cut into blocks of 4x4."""
    core = _library().WaterMarkCore(password_img=_password(key))
    core.read_img_arr(_as_picture(plane))
    core.init_block_index()
    return core


@lru_cache(maxsize=16)
def _orders(key: str, blocks: int) -> np.ndarray:
    """The order in which each block's coefficients are taken: (blocks, 16)."""
    return _library().random_strategy1(_password(key), blocks, (BLOCK // 2) ** 2)


def _password(key: str) -> int:
    return derive_seed(_number(key), "watermark order") % 2**32


def _as_picture(plane: np.ndarray) -> np.ndarray:
    """A grey picture in the library's form, (H, W, 3)."""
    return np.repeat(plane[..., None], 3, axis=2)


def _library() -> Any:
    """The library's inner module, which prints no banner."""
    keep = multiprocessing.set_start_method
    # On import it chooses how processes start, for a pool that is not used here; that fails where it was chosen before
    multiprocessing.set_start_method = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    try:
        from blind_watermark import bwm_core  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(f"watermark: needs the package blind-watermark ({error}); {INSTALL}") from None
    finally:
        multiprocessing.set_start_method = keep  # type: ignore[method-assign]
    return bwm_core
