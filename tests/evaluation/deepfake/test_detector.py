"""The detector on images whose traces are known, its control, and the stage `evaluate deepfake`."""

import gzip
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from data.images import load_images
from evaluation.deepfake.detector import (
    PENALTY,
    Scored,
    auc_estimate,
    control_test,
    detector_estimates,
    fit_detector,
    mean_auc_estimate,
    run_test,
    split_halves,
)
from evaluation.deepfake.metrics import roc_auc
from evaluation.schema import load, read_samples
from evaluation.suites.deepfake import STAGE, DeepfakeConfig
from evaluation.suites.deepfake_run import DETECTOR
from launch.errors import UserError

DATA = Path(os.environ.get("ALIGNKIT_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def textures(count, size=16, seed=0):
    """Images with a 1/f spectrum, as natural images have: uint8 (N, 1, size, size)."""
    noise = np.random.default_rng(seed).standard_normal((count, size, size))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    frequency[0, 0] = 1 / size
    planes = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    planes = 127 + 50 * (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
    return np.clip(np.round(planes), 0, 255).astype(np.uint8)[:, None]


def upsampled(count, seed, order):
    small = textures(count, 8, seed)[:, 0].astype(float)
    large = np.stack([scipy.ndimage.zoom(plane, 2, order=order, grid_mode=True, mode="grid-wrap") for plane in small])
    return np.clip(np.round(large), 0, 255).astype(np.uint8)[:, None]


@pytest.fixture(scope="module")
def real():
    return split_halves(textures(600), "real")


def test_upsampling_is_found_and_real_against_real_is_not(real):
    generated = split_halves(upsampled(400, 1, order=1), "linear")
    found = auc_estimate(run_test(fit_detector(real.train, generated.train), real.test, generated.test))
    control = auc_estimate(control_test(real))
    assert found.value > 0.99 and found.low > 0.95
    assert control.low <= 0.5 <= control.high and abs(control.value - 0.5) < 0.1


def test_training_images_are_not_tested():
    images = textures(300)
    halves = split_halves(np.concatenate([images, images]), "twice")
    train, test = ({row.tobytes() for row in part} for part in (halves.train, halves.test))
    assert not train & test and len(train) + len(test) == 300


def test_estimates_of_a_perfect_and_of_a_blind_detector():
    labels = np.repeat([0, 1], 40)
    perfect = detector_estimates(Scored(labels, labels * 0.9 + 0.05), seed=0, resamples=100)
    assert {k: e.value for k, e in perfect.items()} == {
        "auc": 1.0,
        "ap": 1.0,
        "eer": 0.0,
        "tpr_at_1pct_fpr": 1.0,
        "accuracy_frozen": 1.0,
    }
    assert perfect["auc"].low < 1 and perfect["accuracy_frozen"].low < 1
    blind = detector_estimates(Scored(labels, np.random.default_rng(0).random(80)), seed=0, resamples=200)
    assert blind["auc"].low < 0.5 < blind["auc"].high and blind["eer"].low < 0.5 < blind["eer"].high
    assert all(e.low <= e.value <= e.high for e in blind.values())


def scored(real, generated):
    return Scored(np.repeat([0, 1], [len(real), len(generated)]), np.concatenate([real, generated]))


def test_mean_auc_of_one_test_is_the_bootstrap_of_its_area():
    draw = np.random.default_rng(0)
    real, generated = (
        draw.normal(0, 1, 60).round(1),
        draw.normal(0.8, 1, 40).round(1),
    )  # rounded, so that some are equal
    found = mean_auc_estimate({("a", "a"): scored(real, generated)}, seed=0, resamples=4000)
    brute = [
        roc_auc(np.repeat([0, 1], [60, 40]), np.concatenate([draw.choice(real, 60), draw.choice(generated, 40)]))
        for _ in range(4000)
    ]
    assert found.value == roc_auc(np.repeat([0, 1], [60, 40]), np.concatenate([real, generated])) and found.n == 100
    assert [found.low, found.high] == pytest.approx(np.quantile(brute, [0.025, 0.975]), abs=0.008)
    assert found.stderr == pytest.approx(np.std(brute), rel=0.06)
    assert "over test images, detectors fixed" in found.method


def test_mean_auc_draws_each_set_once_for_all_tests():
    draw = np.random.default_rng(1)
    real, fake, other = (draw.normal(m, 1, 50) for m in (0, 0.7, 0.7))
    alone = mean_auc_estimate({("a", "a"): scored(real, fake)}, 0)
    twice = mean_auc_estimate({("a", "a"): scored(real, fake), ("b", "a"): scored(real, fake)}, 0)
    assert twice.stderr == pytest.approx(alone.stderr) and twice.n == alone.n == 100  # no new images, nothing gained
    two = mean_auc_estimate({("a", "a"): scored(real, fake), ("a", "b"): scored(real, other)}, 0, resamples=4000)
    brute = []
    for _ in range(4000):
        r = draw.choice(real, 50)
        brute.append(np.mean([roc_auc(np.repeat([0, 1], 50), [*r, *draw.choice(x, 50)]) for x in (fake, other)]))
    assert two.n == 150 and two.stderr == pytest.approx(np.std(brute), rel=0.06)  # 15 % less were real drawn twice


def test_mean_auc_without_overlap_has_no_interval():
    found = mean_auc_estimate({("a", "a"): scored(np.zeros(30), np.ones(30))}, 0)
    assert found.value == 1 and found.low is None and "same area on every resample" in found.method


# ---------------------------------------------------------------------------------------------- stage


def job(folder):
    runtime = SimpleNamespace(is_main=True, device=torch.device("cpu"))
    return SimpleNamespace(output_dir=Path(folder), runtime=runtime, say=lambda text: None, beat=lambda step: None)


def save(folder, images):
    folder.mkdir(parents=True)
    np.savez(folder / "samples.npz", images=images)
    return str(folder)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    root = tmp_path_factory.mktemp("deepfake")
    generators = {
        "linear": save(root / "linear", upsampled(240, 1, 1)),
        "same": save(root / "same", textures(240, seed=7)),
    }
    config = DeepfakeConfig(
        output_dir=str(root / "out"), real=save(root / "real", textures(500)), generators=generators, resamples=100
    )
    return root / "out", STAGE.run(config, job(root / "out"))


def test_each_generator_has_a_result_with_its_control(evaluated):
    folder, summary = evaluated
    linear, same = load(folder / "linear"), load(folder / "same")
    assert linear.metric("auc").ci_low > 0.95 and linear.metric("auc").higher_is_better is False
    assert same.metric("auc").ci_low < 0.6
    control = linear.metric("auc_control")
    assert control == same.metric("auc_control") and control.ci_low <= 0.5 <= control.ci_high
    assert summary["linear/auc"] == linear.metric("auc").value
    rows = read_samples(folder / "linear", linear.samples)
    assert len(rows) == linear.metric("auc").n and {row["generated"] for row in rows} == {True, False}


def test_the_matrix_has_every_pair(evaluated):
    result = load(evaluated[0])
    assert result.subject.name == DETECTOR
    table = {(part.name, m.name): m.value for part in result.slices for m in part.metrics}
    assert set(table) == {(a, f"auc on {b}") for a in ("linear", "same") for b in ("linear", "same")}
    assert table["linear", "auc on linear"] == load(evaluated[0] / "linear").metric("auc").value
    assert result.metric("auc_other_generators").value == pytest.approx(
        (table["linear", "auc on same"] + table["same", "auc on linear"]) / 2
    )
    for name in ("auc_own_generator", "auc_other_generators"):
        mean = result.metric(name)
        assert (
            mean.ci_low < mean.value < mean.ci_high and "detectors fixed" in mean.ci_method and mean.extra["pairs"] == 2
        )
    assert f"(C {PENALTY:g}, classes balanced)" in result.protocol.settings["detector"]


def test_sets_that_differ_before_the_pixels_are_refused(tmp_path):
    real = save(tmp_path / "real", textures(100))
    large, grey = save(tmp_path / "large", textures(100, 32)), textures(100)
    colour = save(tmp_path / "colour", grey.repeat(3, axis=1))
    lossy = tmp_path / "lossy"
    lossy.mkdir()
    for index, image in enumerate(grey):
        Image.fromarray(image[0]).save(lossy / f"{index:03}.jpg")
    few = save(tmp_path / "few", textures(30))
    for source, message in (
        (large, "are 32x32 with 1 channel.* real ones are 16x16"),
        (colour, "are 16x16 with 3 channel"),
        (str(lossy), "compression of .* is lossy, of the real images none"),
        (few, "x: has 30 images .0 of them copies.; a detector needs about 80"),
    ):
        config = DeepfakeConfig(output_dir=str(tmp_path / "out"), real=real, generators={"x": source})
        with pytest.raises(UserError, match=message):
            STAGE.run(config, job(tmp_path / "out"))


@pytest.mark.skipif(not (DATA / "gan_generated_digits").is_dir(), reason="set ALIGNKIT_DATA to the folder of real data")
def test_on_real_gans_ranking_does_not_transfer():
    archive = np.load(DATA / "gan_generated_digits" / "mnist_fake.npz")
    raw = gzip.decompress((DATA / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    digits = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:3000]
    real = split_halves(digits, "mnist")
    fake = {m: split_halves(archive["images"][archive["model"] == m][:, None], m) for m in ("VAE", "BEGAN", "GAN")}
    control = auc_estimate(control_test(real))
    assert abs(control.value - 0.5) < 0.08
    detectors = {m: fit_detector(real.train, halves.train) for m, halves in fake.items()}
    auc = {(a, b): auc_estimate(run_test(d, real.test, fake[b].test)).value for a, d in detectors.items() for b in fake}
    assert auc["VAE", "VAE"] > 0.99 and auc["BEGAN", "BEGAN"] > 0.85 and auc["GAN", "GAN"] > 0.7
    assert auc["GAN", "VAE"] < 0.2  # the sign turns around on an unseen generator: hence the matrix


def test_digits_are_told_from_their_blurred_copies():
    digits = load_images("embedded:digits").images
    blurred = scipy.ndimage.gaussian_filter(digits.astype(float), (0, 0, 0.6, 0.6)).astype(np.uint8)
    real, fake = split_halves(digits, "digits"), split_halves(blurred, "blurred")
    assert auc_estimate(run_test(fit_detector(real.train, fake.train), real.test, fake.test)).value > 0.95
