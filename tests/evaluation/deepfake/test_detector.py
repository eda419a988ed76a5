"""The detector on images whose traces are known, its control, and the stage `evaluate deepfake`."""

import gzip

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from data.images import load_images
from evaluation.deepfake.detectors.base import PENALTY
from evaluation.deepfake.detectors.network import NetworkDetector
from evaluation.deepfake.detectors.reconstruction import ReconstructionDetector, set_apart
from evaluation.deepfake.detectors.spectral import SpectralDetector
from evaluation.deepfake.protocol import (
    Scored,
    auc_estimate,
    control_test,
    detector_calibration,
    detector_estimates,
    fit_each,
    mean_auc_estimate,
    split_halves,
)
from evaluation.resolution import resolvable_alone
from evaluation.schema import load, read_samples
from evaluation.statistics import roc_auc
from evaluation.suites.deepfake import STAGE, DeepfakeConfig
from launch.errors import UserError
from tests.evaluation.deepfake.made import job, save, textures, upsampled
from tests.support import DATA


def nothing(step):
    pass


def auc_of(detector, real, generated):
    """AUC on the test halves, trained on the others."""
    return auc_estimate(
        fit_each(detector, real.train, {"g": generated.train}, nothing).matrix(real.test, {"g": generated.test})[
            "g", "g"
        ]
    )


@pytest.fixture(scope="module")
def real():
    return split_halves(textures(600), "real")


def detectors(real):
    return {
        "spectral": SpectralDetector(),
        "network": NetworkDetector(seed=0, steps=40),
        "reconstruction": ReconstructionDetector(real.train[set_apart(real.train)], seed=0, steps=100),
    }


@pytest.mark.parametrize(("name", "least"), [("spectral", 0.99), ("network", 0.95), ("reconstruction", 0.95)])
def test_upsampling_is_found_and_real_against_real_is_not(real, name, least):
    generated, detector = split_halves(upsampled(400, 1, order=1), "linear"), detectors(real)[name]
    found, control = auc_of(detector, real, generated), auc_estimate(control_test(detector, real), level=0.999)
    assert found.value > least and found.low > 0.9
    assert control.low <= 0.5 <= control.high and abs(control.value - 0.5) < 0.12


@pytest.mark.parametrize("name", ["network", "reconstruction"])
def test_the_same_seed_gives_the_same_scores(real, name):
    generated = upsampled(60, 1, order=1)
    scores = []
    for _ in range(2):
        detector = detectors(real)[name]
        rows = detector.prepare(real.train[:60]), detector.prepare(generated)
        scores.append(detector.fit(*rows)(rows[1]))
    assert np.array_equal(*scores) and scores[0].min() >= 0 and scores[0].max() <= 1


def test_the_network_sees_images_of_any_size_and_colour():
    draw = np.random.default_rng(0)
    for shape in ((30, 1, 8, 8), (30, 3, 70, 90)):
        real, fake = draw.integers(0, 120, shape).astype(np.uint8), draw.integers(130, 250, shape).astype(np.uint8)
        score = NetworkDetector(seed=0, steps=15).fit(real, fake)
        assert score(fake).min() > score(real).max()
        detector = ReconstructionDetector(real, seed=0, steps=3)
        assert np.isfinite(detector.prepare(fake)).all() and len(detector.prepare(fake)) == 30


def test_training_images_are_not_tested():
    images = textures(300)
    halves = split_halves(np.concatenate([images, images]), "twice")
    train, test = ({row.tobytes() for row in part} for part in (halves.train, halves.test))
    assert not train & test and len(train) + len(test) == 300
    apart = set_apart(halves.train)  # nor does the head of the reconstruction detector see what its autoencoder learnt
    assert not {x.tobytes() for x in halves.train[apart]} & {x.tobytes() for x in halves.train[~apart]}
    assert 0.4 < apart.mean() < 0.6


def test_estimates_of_a_perfect_and_of_a_blind_detector():
    labels = np.repeat([0, 1], 40)
    perfect = detector_estimates(Scored(labels, labels * 0.9 + 0.05), threshold=0.5, seed=0, resamples=100)
    assert {k: e.value for k, e in perfect.items()} == {
        "auc": 1.0,
        "ap": 1.0,
        "eer": 0.0,
        "tpr_at_1pct_fpr": 1.0,
        "accuracy_frozen": 1.0,
    }
    assert perfect["auc"].low < 1 and perfect["accuracy_frozen"].low < 1
    tpr = perfect["tpr_at_1pct_fpr"]
    assert tpr.low < 0.5 and tpr.high == 1  # of 40 real images none need lie near the threshold
    for name in ("ap", "eer"):  # a resample of classes that are apart says nothing of others
        assert perfect[name].low is None and perfect[name].method == "none (the same on every resample)"
    blind = detector_estimates(
        Scored(labels, np.random.default_rng(0).random(80)), threshold=0.5, seed=0, resamples=200
    )
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


def test_calibration_of_honest_and_of_overconfident_scores():
    draw = np.random.default_rng(0)
    p = draw.uniform(0.02, 0.98, 20_000)
    labels = (draw.random(20_000) < p).astype(int)
    honest = detector_calibration(Scored.of(p[labels == 0], p[labels == 1]), 0)
    assert honest.error.value < 0.02
    sharp = np.exp(3 * np.log(p / (1 - p)))
    bold = sharp / (1 + sharp)
    found = detector_calibration(Scored.of(bold[labels == 0], bold[labels == 1]), 0)
    assert found.error.value > 0.1 and found.p_value < 0.01
    few = detector_calibration(Scored.of(p[labels == 0], p[labels == 1][:300]), 0)
    assert few.error.n == 600  # as many of the larger class as the smaller has
    certain = detector_calibration(Scored.of(np.zeros(30), np.ones(30)), 0)
    assert certain.error.value == pytest.approx(0.0, abs=1e-6)


# ---------------------------------------------------------------------------------------------- stage


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    root = tmp_path_factory.mktemp("deepfake")
    generators = {
        "linear": save(root / "linear", upsampled(240, 1, 1)),
        "same": save(root / "same", textures(240, seed=7)),
    }
    config = DeepfakeConfig(
        output_dir=str(root / "out"),
        real=save(root / "real", textures(500)),
        generators=generators,
        resamples=100,
        robustness=["jpeg:50", "resize:0.5"],
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
    assert result.subject.name == "spectral detector"
    parts = {g: [part for part in result.slices if part.group == g] for g in ("trained on", "accuracy, trained on")}
    table = {(part.name, m.name): m.value for part in parts["trained on"] for m in part.metrics}
    accuracies = {(part.name, m.name): m for part in parts["accuracy, trained on"] for m in part.metrics}
    assert set(accuracies) == {(a, f"accuracy on {b}") for a in ("linear", "same") for b in ("linear", "same")}
    assert accuracies["linear", "accuracy on linear"].value > 0.9 > accuracies["linear", "accuracy on same"].value
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
    assert f"(C {PENALTY:g}, classes balanced)" in result.metric("auc_control").extra["detector"]
    assert f"(C {PENALTY:g}, classes balanced)" in load(evaluated[0] / "linear").protocol.settings["detector"]


def test_what_the_images_resolve_is_told_of_generators_and_of_the_detector(evaluated):
    generator, detector = load(evaluated[0] / "linear"), load(evaluated[0])
    for name in ("auc", "accuracy_frozen"):
        assert f"{name} {resolvable_alone(generator.metric(name)):.3g}" in generator.resolution[0]
    assert "item by item" not in generator.resolution[0] and "item by item" in detector.resolution[0]
    assert f"auc_own_generator {resolvable_alone(detector.metric('auc_own_generator')):.3g}" in detector.resolution[0]


def test_robustness_is_measured_on_treated_test_images(evaluated):
    linear, detector = load(evaluated[0] / "linear"), load(evaluated[0])
    curve = {part.name: part.metrics for part in linear.slices if part.group == "robustness"}
    assert list(curve) == ["jpeg:50", "resize:0.5"]
    assert [m.name for m in curve["jpeg:50"]] == ["auc", "accuracy_frozen"]
    # real images are upsampled by the treatment, too, and no detector has seen that: they are called generated
    assert curve["resize:0.5"][1].value < 0.7 < 0.95 < linear.metric("accuracy_frozen").value
    means = {part.name: part.metrics[0] for part in detector.slices if part.group == "robustness"}
    assert means["jpeg:50"].value == pytest.approx(
        np.mean([load(evaluated[0] / n).slices[0].metrics[0].value for n in ("linear", "same")])
    )


def test_no_files_no_control_of_files(evaluated):
    for name in ("auc_format_only", "auc_metadata_only"):
        entry = load(evaluated[0] / "linear").metric(name)
        assert entry.value is None and "no files to look at" in entry.note


def test_a_sign_that_is_turned_around_is_said(tmp_path):
    """Trained on smoother images than real ones, tested on rougher ones."""
    smooth = scipy.ndimage.gaussian_filter(textures(160, seed=3).astype(float), (0, 0, 1, 1)).astype(np.uint8)
    rough = np.clip(textures(160, seed=4) + np.random.default_rng(0).normal(0, 40, (160, 1, 16, 16)), 0, 255).astype(
        np.uint8
    )
    sources = {"smooth": save(tmp_path / "s", smooth), "rough": save(tmp_path / "r", rough)}
    config = DeepfakeConfig(
        output_dir=str(tmp_path),
        real=save(tmp_path / "real", textures(300)),
        generators=sources,
        resamples=20,
        robustness=[],
    )
    STAGE.run(config, job(tmp_path))
    notes = " ".join(load(tmp_path).notes)
    assert "Trained on smooth, tested on rough: the AUC is 0.0" in notes and "sign is turned" in notes


def test_what_a_config_cannot_mean():
    def fault(**values):
        with pytest.raises(ValueError) as caught:
            DeepfakeConfig(output_dir="x", **{"generators": {"a": "b"}, **values}).check()
        return str(caught.value)

    assert "there are jpeg:quality" in fault(robustness=["jpg:75"]) and "jpeg:0" in fault(robustness=["jpeg:0"])
    assert "there twice" in fault(robustness=["blur:1", "blur:1.0"])
    assert "'pretrained' needs a folder" in fault(detector="pretrained")
    assert "does not read it" in fault(model="x") and "does not read it" in fault(generated_label="x")


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
    assert abs(auc_estimate(control_test(SpectralDetector(), real)).value - 0.5) < 0.08
    fitted = fit_each(SpectralDetector(), real.train, {m: h.train for m, h in fake.items()}, nothing)
    tests = fitted.matrix(real.test, {m: h.test for m, h in fake.items()})
    auc = {pair: auc_estimate(test).value for pair, test in tests.items()}
    assert auc["VAE", "VAE"] > 0.99 and auc["BEGAN", "BEGAN"] > 0.85 and auc["GAN", "GAN"] > 0.7
    assert auc["GAN", "VAE"] < 0.2  # the sign turns around on an unseen generator: hence the matrix


def test_digits_are_told_from_their_blurred_copies():
    digits = load_images("embedded:digits").images
    blurred = scipy.ndimage.gaussian_filter(digits.astype(float), (0, 0, 0.6, 0.6)).astype(np.uint8)
    assert auc_of(SpectralDetector(), split_halves(digits, "digits"), split_halves(blurred, "blurred")).value > 0.95
