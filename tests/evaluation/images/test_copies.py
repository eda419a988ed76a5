"""Copies of training images: the rule on features of known distances, and the suite on generators that copy."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import image_set, load_images
from evaluation.images.copies import copy_threshold, find_copies, nearest_training
from evaluation.images.grid import image_grid, save_png
from evaluation.report.media import pictures_of
from evaluation.schema import load, read_samples
from evaluation.suites.images import REAL, STAGE, ImagesConfig
from evaluation.suites.images_sets import count_distinct
from evaluation.suites.images_training import Training, Unknown, find_training, trace_training
from launch.errors import UserError
from launch.provenance import fingerprint_input
from launch.seeding import numpy_generator
from tests.evaluation.images.test_images_suite import job

TRAIN = "embedded:digits::train"


def pixels(values):
    """A set of one-pixel pictures, and features that are their grey values."""
    images = np.asarray(values, dtype=np.uint8)[:, None, None, None]
    return image_set(images, None, "pixels"), images[:, 0, 0, 0, None].astype(np.float64)


def test_nearest_are_those_of_a_search():
    training, made = pixels([10, 50, 90, 90]), pixels([10, 49, 200, 71])
    found = nearest_training(*made, *training)
    assert found.index_N.tolist()[:2] == [0, 1] and found.distance_N.tolist() == [0, 1, 110, 19]
    assert set(found.index_N.tolist()[2:]) <= {2, 3}  # the same picture twice
    assert found.exact_N.tolist() == [True, False, False, False]
    others = nearest_training(*made, *training, itself=False)  # the first is a training image: its nearest other one
    assert others.index_N.tolist()[:2] == [1, 1] and others.distance_N.tolist() == [40, 1, 110, 19]


def test_equal_features_are_no_distance_apart_and_the_same_picture_is_shown():
    g = numpy_generator(0, "copies")
    features = 1e3 * g.normal(size=(40, 64))
    training = image_set(g.integers(0, 256, (40, 1, 4, 4), dtype=np.uint8), None, "t")
    features[7] = features[3]  # the extractor cannot tell pictures 3 and 7 apart
    found = nearest_training(training.take(np.array([7, 3])), features[[7, 3]], training, features)
    assert found.index_N.tolist() == [7, 3] and found.distance_N.tolist() == [0.0, 0.0]


def test_the_search_keeps_no_second_copy_of_the_pixels():
    training = image_set(numpy_generator(0, "large").integers(0, 256, (400, 3, 64, 64), dtype=np.uint8), None, "t")
    features = np.arange(400.0)[:, None]
    tracemalloc.start()
    nearest_training(training, features, training, features)
    count_distinct(training)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < training.images.nbytes  # 4.7 MiB; distances take 1.2 MiB a matrix


@pytest.mark.parametrize(("m", "k"), [(20, 1), (99, 1), (199, 2), (456, 4)])
def test_the_threshold_is_reached_by_as_many_new_real_images_as_it_says(m, k):
    draws = numpy_generator(0, "thresholds", m).exponential(size=(4000, m + 1))
    limits = [copy_threshold(row[:-1]) for row in draws]
    assert limits[0] == (np.sort(draws[0, :-1])[k - 1], k / (m + 1))
    share = np.mean([row[-1] <= limit for row, (limit, _) in zip(draws, limits, strict=True)])
    assert share == pytest.approx(k / (m + 1), abs=3.5 * np.sqrt(k / (m + 1) / 4000))


def test_who_copies_is_told_from_who_does_not():
    g, (n, m, t, d) = numpy_generator(1, "copiers"), (400, 300, 300, 4)

    def drawn(count):
        return image_set(g.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), None, "x"), g.normal(size=(count, d))

    training, real, fresh = drawn(t), drawn(m), drawn(n)
    yardstick = nearest_training(*real, *training, itself=False)
    honest = find_copies(nearest_training(*fresh, *training), yardstick)
    assert honest.share.low < honest.false_alarms < honest.share.high and honest.share.value < 0.04
    assert honest.nearer.low < 0.5 < honest.nearer.high
    copier = fresh[1].copy()
    copier[:120] = training[1][g.integers(0, t, 120)] + 1e-3 * g.normal(size=(120, d))
    found = find_copies(nearest_training(fresh[0], copier, *training), yardstick)
    assert found.near_N[:120].all() and found.share.value == pytest.approx(0.3, abs=0.03)
    assert found.nearer.low > 0.5
    # a reference that was trained on says how far real images are from one another, and hides nothing
    trained_on = find_copies(
        nearest_training(fresh[0], copier, *training), nearest_training(*training, *training, itself=False)
    )
    assert trained_on.threshold > 0 and trained_on.share.value == pytest.approx(0.3, abs=0.05)


# ---------------------------------------------------------------------------------------------- the suite


@pytest.fixture(scope="module", autouse=True)
def trained_once(digits_extractor):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.suites.images_run.prepare_extractor", lambda *arguments: digits_extractor)
        yield


def evaluate(folder, **settings):
    STAGE.run(ImagesConfig(output_dir=str(folder), **settings), job(folder))
    return folder


@pytest.fixture(scope="module")
def memorised(tmp_path_factory):
    return evaluate(tmp_path_factory.mktemp("copies") / "out", generators={"copy": TRAIN})


def test_a_perfect_memoriser_is_found_and_shown(memorised):
    result = load(memorised / "copy")
    share, nearer = (result.metric(f"{name}_digits@469") for name in ("training_copies", "nearer_to_training"))
    assert share.value == 1 and share.ci_low > 0.99 and share.extra["exact_copies"] == 469
    assert share.extra["training"] == TRAIN and share.extra["training_images"] == 872
    assert nearer.value == 1 and nearer.extra["median_distance"] == 0
    training = load_images("embedded:digits").images  # rows are those of the source, not of its half
    rows = read_samples(memorised / "copy", result.samples)
    assert all(row["training_copy"] and row["training_distance"] == 0 for row in rows)
    shown = [training[row["nearest_training"]] for row in rows[:12]]
    save_png(memorised / "expected.png", image_grid(np.array([*shown, *shown]), 12), 4)
    with Image.open(memorised / "copy" / "neighbours.png") as found, Image.open(memorised / "expected.png") as expected:
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert f"872 training images of {TRAIN}, which is assumed" in result.notes[-1]


def test_real_images_that_were_not_trained_on_are_the_yardstick(memorised):
    result = load(memorised / "real-images-held-out")
    share, nearer = (result.metric(f"{name}_digits@469") for name in ("training_copies", "nearer_to_training"))
    assert share.ci_low < share.extra["real_images_within"] == 4 / 457 < share.ci_high
    assert nearer.ci_low < 0.5 < nearer.ci_high
    assert load(memorised / "independent-pixels").metric("training_copies_digits@469").value == 0


def test_where_the_training_images_are_not_known_none_are_shown(tmp_path):
    digits = load_images("embedded:digits::eval").images
    np.savez(tmp_path / "real.npz", images=digits[:300])
    np.savez(tmp_path / "made.npz", images=digits[300:400])
    settings = dict(generators={"m": str(tmp_path / "made.npz")}, reference=str(tmp_path / "real.npz"), baselines=False)
    folder = evaluate(tmp_path / "unknown", **settings)
    result = load(folder / "m")
    assert not (folder / "m" / "neighbours.png").exists()
    assert not any("training" in m.name for m in result.metrics)
    assert "training images are not known (no provenance of alignkit lies beside the images)" in result.notes[-1]
    assert result.notes[-1].endswith("give them as --training SOURCE.")
    given = load(evaluate(tmp_path / "given", **settings, training=str(tmp_path / "real.npz")) / "m")
    entry = given.metric("training_copies_digits@100")
    assert entry.extra["exact_copies"] == 0 and entry.extra["threshold"] > 0  # the reference itself was trained on
    assert given.notes[-1].endswith("real.npz, as given.")


def test_a_reference_that_was_trained_on_is_told(tmp_path, memorised):
    """The extractor saw no image of the reference; the generator saw all."""
    settings = dict(generators={"g": TRAIN}, reference="embedded:digits::eval", max_images=60)
    result = load(evaluate(tmp_path / "out", **settings, training="embedded:digits") / "g")
    assert result.notes[-2].startswith(
        "60 of the 60 reference images are among the training images of embedded:digits:"
    )
    assert not any("reference images are among" in note for note in load(memorised / "copy").notes)


def trained(folder, source, **changes):
    """A folder as `train-generative` leaves it, and images as `sample` does, with what a provenance says of them."""
    named = {"path": str(source), "sha256": fingerprint_input("data", str(source))["sha256"]} | changes
    for name, inputs in (
        ("model", {"data": named}),
        ("samples", {"model": {"path": f"{folder}/model", "sha256": "m"}}),
    ):
        (folder / name).mkdir(parents=True)
        content = {"content_sha256": name[0], "stage": "x", "inputs": inputs}
        (folder / name / "provenance.json").write_text(json.dumps(content))
    return str(folder / "samples")


def test_a_generator_s_training_images_are_traced_through_its_samples(tmp_path):
    digits = load_images(TRAIN).images
    np.savez(tmp_path / "train.npz", images=digits[:50].repeat(2, axis=2).repeat(2, axis=3))
    samples = trained(tmp_path / "run", tmp_path / "train.npz")
    assert trace_training(samples) == trace_training(f"{tmp_path}/run/model") == str(tmp_path / "train.npz")
    config = ImagesConfig(output_dir="x", generators={"traced": samples, "other": TRAIN})
    found = find_training(config, (1, 8, 8))
    assert isinstance(found["traced"], Training) and found["traced"].images.images.shape == (50, 1, 8, 8)
    assert "50 training images" in found["traced"].note() and "provenance says" in found["traced"].note()
    assert "assumed" in found["other"].note() and isinstance(
        found[REAL], Unknown
    )  # two sources: none is the yardstick's
    config = ImagesConfig(output_dir="x", generators={"traced": samples}, max_images=20)
    assert "20 of which were compared" in find_training(config, (1, 8, 8))[REAL].note()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "other"}, "train.npz has changed since"),
        ({"path": "/no/where.npz"}, "/no/where.npz: no such file or folder"),
        ({"path": "hub:a/b"}, "they are hub:a/b, which is not fetched unasked"),
    ],
)
def test_training_images_that_are_gone_are_not_known(tmp_path, changes, reason):
    np.savez(tmp_path / "train.npz", images=load_images(TRAIN).images[:50])
    samples = trained(tmp_path / "run", tmp_path / "train.npz", **changes)
    found = find_training(ImagesConfig(output_dir="x", generators={"g": samples}), (1, 8, 8))["g"]
    assert isinstance(found, Unknown) and reason in found.note()


def test_training_images_that_cannot_be_compared_are_one_sentence(tmp_path):
    np.savez(tmp_path / "rgb.npz", images=np.zeros((30, 3, 8, 8), np.uint8))
    np.savez(tmp_path / "few.npz", images=np.zeros((2, 1, 8, 8), np.uint8))
    for name, sentence in (
        ("rgb", r"rgb.npz has images of shape \(3, 8, 8\), the sets have \(1, 8, 8\)"),
        ("few", "has 2 images"),
    ):
        config = ImagesConfig(output_dir="x", generators={"g": TRAIN}, training=str(tmp_path / f"{name}.npz"))
        with pytest.raises(UserError, match=f"^training: .*{sentence}"):
            find_training(config, (1, 8, 8))


def test_the_page_says_which_images_are_shown(memorised, tmp_path):
    class Found:
        def __init__(self, folder):
            self.folder, self.result = Path(folder), load(folder)

    known = pictures_of([Found(memorised / "copy")])[0].compared
    assert f"above that image of {TRAIN}; of the whole set 469 are exact copies" in known
    for name in ("results.json", "grid.png", "neighbours.png"):
        (tmp_path / name).write_bytes((memorised / "copy" / name).read_bytes())
    content = json.loads(
        (tmp_path / "results.json").read_text()
    )  # as it was written before training images were looked for
    content["metrics"] = [m for m in content["metrics"] if "training" not in m["name"]]
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert "not known, so no copies of them are shown: below are the nearest images of the reference" in (
        pictures_of([Found(tmp_path)])[0].compared
    )
    (tmp_path / "neighbours.png").unlink()
    assert pictures_of([Found(tmp_path)])[0].compared.endswith("no copies of them are shown")
