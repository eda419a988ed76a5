"""The invisible mark: unseen, found again, not found where it is not, also after what images go through."""

import multiprocessing
import sys

import numpy as np
import pytest
import scipy.stats

from evaluation.deepfake import watermark
from evaluation.deepfake.perturb import jpeg
from evaluation.deepfake.watermark import (
    FALSE_ALARMS,
    count_matches,
    detect_watermark,
    embed_watermark,
    matches_needed,
)
from evaluation.schema import load
from evaluation.suites.deepfake import STAGE, DeepfakeConfig
from launch.errors import UserError
from tests.evaluation.deepfake.made import job, save, textures

pytest.importorskip("cv2", reason="OpenCV cannot be loaded here", exc_type=ImportError)
pytest.importorskip("blind_watermark", reason="pip install 'alignkit[watermark]'", exc_type=ImportError)


def colour(count, size=64, seed=0):
    return np.concatenate([textures(count, size, seed + k) for k in range(3)], axis=1)


@pytest.fixture(scope="module")
def grey():
    return textures(40, 48)


@pytest.fixture(scope="module")
def marked(grey):
    return embed_watermark(grey, "key")


@pytest.mark.parametrize(
    "images", [textures(6, 64), colour(6), textures(6, 45), colour(4, 41)], ids=["grey", "rgb", "odd", "odd rgb"]
)
def test_every_bit_is_there_and_nobody_sees_it(images):
    found = embed_watermark(images, "key")
    matches, blocks = count_matches(found, "key")
    assert found.shape == images.shape and found.dtype == np.uint8 and (matches == blocks).all()
    error = np.sqrt(np.mean((found.astype(float) - images) ** 2))
    assert 0.5 < error < 3.5  # grey levels: a peak signal-to-noise ratio of more than 37 dB


def test_the_mark_of_another_key_is_noise(grey, marked):
    assert detect_watermark(marked, "key").all()
    for images in (grey, embed_watermark(grey, "another"), np.roll(marked, 3, axis=(2, 3))):
        matches, blocks = count_matches(images, "key")
        assert abs(matches.mean() / blocks - 0.5) < 0.03 and detect_watermark(images, "key").mean() < 0.1


def test_compression_leaves_it(marked):
    assert detect_watermark(jpeg(marked, 90), "key").mean() > 0.95


def test_plain_images_can_be_marked_and_do_not_look_marked():
    for level in (0, 128, 255):
        plain = np.full((2, 1, 64, 64), level, np.uint8)
        assert not detect_watermark(plain, "key").any(), level
        assert detect_watermark(embed_watermark(plain, "key"), "key").all(), level
        assert np.abs(embed_watermark(plain, "key").astype(int) - level).max() <= 16


@pytest.mark.parametrize("blocks", [7, 9, 16, 64, 1024])
def test_fair_coins_reach_the_threshold_as_seldom_as_it_says(blocks):
    needed = matches_needed(blocks)
    assert scipy.stats.binom.sf(needed - 1, blocks, 0.5) <= FALSE_ALARMS < scipy.stats.binom.sf(needed - 2, blocks, 0.5)


def test_small_images_have_no_room():
    with pytest.raises(UserError, match="images of 16x16 pixels have room for 4 bits"):
        embed_watermark(textures(2, 16), "key")
    assert detect_watermark(embed_watermark(textures(20, 28), "key"), "key").mean() > 0.9


def test_black_and_white_keep_every_bit():
    """Where pixels cannot go below 0 or above 255 a single round loses bits."""
    strokes = np.where(textures(12, 32) > 150, 255, 0).astype(np.uint8)
    marked = embed_watermark(strokes, "key")
    matches, blocks = count_matches(marked, "key")
    assert matches.mean() > 0.93 * blocks and np.sqrt(np.mean((marked.astype(float) - strokes) ** 2)) < 5


def test_how_processes_start_is_left_alone(monkeypatch):
    """The library chooses it on import, and fails where it was chosen before."""
    for name in [n for n in sys.modules if n.split(".")[0] == "blind_watermark"]:
        monkeypatch.delitem(sys.modules, name)
    calls, before = [], multiprocessing.set_start_method
    monkeypatch.setattr(multiprocessing, "set_start_method", lambda *a, **k: calls.append(a))
    own = multiprocessing.set_start_method
    watermark._library()
    assert calls == [] and multiprocessing.set_start_method is own is not before


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "blind_watermark", None)
    with pytest.raises(UserError, match=r"needs the package blind-watermark.*alignkit\[watermark\]"):
        embed_watermark(textures(1, 64), "key")


def test_detection_and_false_alarms_are_in_the_results(tmp_path, marked):
    config = DeepfakeConfig(
        output_dir=str(tmp_path / "out"),
        real=save(tmp_path / "real", textures(90, 48, 9)),
        generators={"marked": save(tmp_path / "m", embed_watermark(textures(90, 48, 8), "key")), "plain": save(tmp_path / "p", textures(90, 48, 7))},
        robustness=["jpeg:90", "blur:2"],
        resamples=10,
        watermark="key",
    )  # fmt: skip
    STAGE.run(config, job(tmp_path / "out"))
    found = {name: load(tmp_path / "out" / name) for name in ("marked", "plain")}
    assert (
        found["marked"].metric("watermark_detected").value == 1.0
        and found["marked"].metric("watermark_detected").n == 90
    )
    assert found["plain"].metric("watermark_detected").value < 0.1
    assert found["marked"].metric("watermark_false_alarms").value < 0.1
    after = {part.name: part.metrics for part in found["marked"].slices if part.group == "watermark after"}
    assert list(after) == ["jpeg:90", "blur:2"] and after["jpeg:90"][0].value > 0.95 > after["blur:2"][0].value
