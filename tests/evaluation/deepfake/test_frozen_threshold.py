"""The threshold that is chosen on the training generator: by hand, where it is chosen, and that the scale is no matter."""

import numpy as np
import pytest

from evaluation.deepfake.detectors.spectral import SpectralDetector
from evaluation.deepfake.metrics import balanced_accuracy, equal_error_rate, equal_error_threshold
from evaluation.deepfake.protocol import Scored, fit_each, frozen_accuracy, kept_apart, split_halves
from evaluation.schema import load
from evaluation.suites.deepfake import STAGE, DeepfakeConfig
from launch.errors import UserError
from tests.evaluation.deepfake.made import job, save, textures, upsampled


def chosen(real, generated):
    test = Scored.of(np.array(real, float), np.array(generated, float))
    return equal_error_threshold(test.labels, test.scores)


def test_threshold_by_hand():
    assert chosen([0, 1, 2], [10, 11]) == 6  # apart: the middle of the gap
    assert chosen([1, 2, 3, 6], [4, 5, 7, 8]) == 4.5  # a quarter of either kind is on the wrong side
    # from 2.5: a quarter of the real ones is called generated, no generated one real; from 3.5: a quarter, and a half
    assert chosen([0, 1, 2, 5], [3, 4]) == pytest.approx((2.5 + 3.5) / 2)
    assert chosen([2, 2], [2, 2, 2]) == 2


def test_threshold_is_where_the_errors_meet():
    draw = np.random.default_rng(0)
    test = Scored.of(draw.normal(0, 1, 4000), draw.normal(1.3, 2, 3000))
    threshold = equal_error_threshold(test.labels, test.scores)
    false_alarms, misses = (test.real >= threshold).mean(), (test.generated < threshold).mean()
    assert false_alarms == pytest.approx(misses, abs=1e-3)
    assert false_alarms == pytest.approx(equal_error_rate(test.labels, test.scores), abs=1e-3)
    assert balanced_accuracy(test.labels, test.scores, threshold).value == pytest.approx(1 - false_alarms, abs=1e-3)


class Rescaled:
    """A detector whose scores are moved and squeezed, so that none is near one half."""

    name, learns, description = "rescaled", True, "rescaled"

    def __init__(self):
        self.inner = SpectralDetector()

    def prepare(self, images):
        return self.inner.prepare(images)

    def fit(self, real, generated):
        score = self.inner.fit(real, generated)
        return lambda rows: 0.7 + 0.1 * score(rows)


def fitted(detector, real, generated):
    return fit_each(detector, real.train, {"g": generated.train}, lambda step: None)


def test_a_moved_scale_of_scores_changes_no_accuracy():
    real = split_halves(textures(400), "real")
    generated, other = (split_halves(upsampled(300, seed, order=1), "g") for seed in (1, 2))
    found = {}
    for detector in (SpectralDetector(), Rescaled()):
        fit = fitted(detector, real, generated)
        tests = fit.matrix(real.test, {"g": generated.test, "h": other.test})
        found[detector.name] = [frozen_accuracy(tests["g", name], fit.thresholds["g"]) for name in ("g", "h")]
        constant = frozen_accuracy(tests["g", "g"], 0.5).value
        assert (constant == 0.5) == (detector.name == "rescaled")  # what a constant threshold makes of it
    assert found["rescaled"] == found["spectral"] and min(e.value for e in found["spectral"]) > 0.9


class Memory:
    """Knows the generated images it was trained on by heart, and gives all others the brightness of their first pixel."""

    name, learns, description = "memory", True, "memory"

    def prepare(self, images):
        return images

    def fit(self, real, generated):
        self.seen = {image.tobytes() for image in generated} | {image.tobytes() for image in real}
        return lambda rows: np.array([1000.0 if r.tobytes() in self.seen else float(r[0, 0, 0]) for r in rows])


def test_the_threshold_is_chosen_on_images_that_were_not_learnt():
    """On those that were learnt every score is 1000, and so would the threshold be."""
    real = split_halves(np.minimum(textures(200), 100), "real")
    generated = split_halves(np.maximum(upsampled(200, 1, order=1), 150), "g")
    detector = Memory()
    fit = fitted(detector, real, generated)
    assert 100 < fit.thresholds["g"] < 150
    kept = {image.tobytes() for image in generated.train[kept_apart(generated.train, "g")]}
    assert 0.2 * len(generated.train) < len(kept) < 0.35 * len(generated.train) and not kept & detector.seen
    assert not detector.seen & {image.tobytes() for image in generated.test}


def test_copies_stay_together_and_too_many_are_refused():
    images = textures(40)
    kept = kept_apart(np.concatenate([images, images]), "x")
    assert np.array_equal(kept[:40], kept[40:]) and 0 < kept.sum() < 80
    with pytest.raises(UserError, match="x: its training half has too many copies"):
        kept_apart(np.repeat(images[:1], 40, axis=0), "x")


def test_results_name_the_threshold_and_how_it_was_chosen(tmp_path):
    generators = {
        "linear": save(tmp_path / "l", upsampled(160, 1, 1)),
        "nearest": save(tmp_path / "n", upsampled(160, 2, 0)),
    }
    config = DeepfakeConfig(
        output_dir=str(tmp_path / "out"),
        real=save(tmp_path / "real", textures(200)),
        generators=generators,
        resamples=20,
        robustness=["blur:1"],
    )
    STAGE.run(config, job(tmp_path / "out"))
    detector = load(tmp_path / "out")
    parts = {part.name: part.metrics for part in detector.slices if part.group == "accuracy, trained on"}
    for name in generators:
        own = load(tmp_path / "out" / name)
        threshold = own.metric("accuracy_frozen").extra["threshold"]
        assert 0 < threshold < 1 and {m.extra["threshold"] for m in parts[name]} == {threshold}
        blurred = next(part for part in own.slices if part.group == "robustness").metrics[1]
        assert blurred.name == "accuracy_frozen" and blurred.extra["threshold"] == threshold
        assert "equal error rate on 25% of the training half" in own.protocol.settings["threshold"]
    assert "equal error rate" in detector.metric("auc_control").extra["threshold"]
