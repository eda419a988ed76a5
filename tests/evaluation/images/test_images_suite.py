"""The stage `evaluate images` on small sets of digits."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.images import load_images
from evaluation.images.extractors.classifier import TRAINED_ON
from evaluation.images.grid import image_grid
from evaluation.resolution import resolvable_alone
from evaluation.schema import load, read_samples
from evaluation.suites.images import PIXELS, REAL, STAGE, ImagesConfig
from evaluation.suites.images_sets import independent_pixels, is_model, load_sets
from generative.train import TrainConfig
from launch.config import build
from launch.errors import UserError
from launch.files import folder_name
from tests.evaluation.images.conftest import one_rank
from tests.forked import run_forked
from tests.generative.tiny import train


def job(folder):
    beats = []
    return SimpleNamespace(
        output_dir=Path(folder),
        runtime=one_rank(),
        say=lambda text: None,
        beat=beats.append,
        beats=beats,
        seconds=2.5,
        stop_if_requested=lambda step: None,
    )


def save(folder, images):
    folder.mkdir()
    np.savez(folder / "samples.npz", images=images)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def trained_once(digits_extractor):
    """The stage trains its extractor anew each time, always to the same weights: the tests share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.suites.images_run.prepare_extractor", lambda *arguments: digits_extractor)
        yield


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, trained_once):
    root = tmp_path_factory.mktemp("images")
    digits = load_images("embedded:digits::eval").images
    draw = np.random.default_rng(0).normal(0, 70, digits[:400].shape)
    generators = {
        "copies": save(root / "copies", digits[:400]),
        "noisy/70": save(root / "noisy", np.clip(digits[:400] + draw, 0, 255).astype(np.uint8)),
    }
    summary = STAGE.run(ImagesConfig(output_dir=str(root / "out"), generators=generators), job(root / "out"))
    return root / "out", summary


def test_no_digit_has_two_roles(tmp_path):
    source = save(tmp_path / "generated", load_images("embedded:digits::train").images)
    sets, reference = load_sets(ImagesConfig(output_dir=str(tmp_path), generators={"g": source}))
    assert TRAINED_ON == TrainConfig(output_dir="x").data == "embedded:digits::train"
    roles = [load_images(TRAINED_ON), reference, load_images("embedded:digits::eval")]
    assert [len(role) for role in roles] == [872, 456, 925]
    pixels = [{image.tobytes() for image in role.images} for role in (roles[0], reference, sets[REAL])]
    assert [len(p) for p in pixels] == [872, 456, 469]  # no copies either
    assert not pixels[0] & pixels[1] and not pixels[0] & pixels[2] and not pixels[1] & pixels[2]
    assert {name: len(images) for name, images in sets.items()} == {REAL: 469, "g": 469, PIXELS: 469}


def test_a_reference_that_the_extractor_was_trained_on_is_refused(tmp_path):
    source = save(tmp_path / "generated", load_images("embedded:digits::eval").images)
    config = ImagesConfig(output_dir=str(tmp_path), generators={"g": source}, reference="embedded:digits")
    with pytest.raises(UserError, match=r"trained on 872 of the 1797 images .* --reference embedded:digits::eval"):
        load_sets(config)


def test_every_set_has_a_result_at_one_n(evaluated):
    folder, summary = evaluated
    results = {path.parent.name: load(path) for path in folder.glob("*/results.json")}
    assert set(results) == {"copies", "noisy-70", "real-images-held-out", "independent-pixels"}
    distances = {name: result.metrics[0] for name, result in results.items()}
    assert {m.name for m in distances.values()} == {"fd_digits@400"}
    assert all(m.ci_low <= m.value <= m.ci_high and m.n == 400 for m in distances.values())
    order = sorted(distances, key=lambda name: distances[name].value)
    assert order[2:] == ["noisy-70", "independent-pixels"]
    assert distances["noisy-70"].ci_low > distances["real-images-held-out"].ci_high
    assert summary["noisy/70/fd_digits@400"] == distances["noisy-70"].value
    kinds = {result.subject.name: result.subject.kind for result in results.values()}
    assert kinds == {"copies": "image generator", "noisy/70": "image generator", REAL: "images", PIXELS: "images"}


def test_result_agrees_with_torch_fidelity_and_keeps_its_protocol(evaluated):
    result = load(evaluated[0] / "copies")
    for entry in result.metrics[:2]:
        assert entry.extra["difference_from_torch_fidelity"] <= 1e-6 * entry.value
    assert result.metrics[1].name == "is_digits@400" and 8.5 < result.metrics[1].value <= 10
    settings = result.protocol.settings
    assert len(settings["extractor_sha256"]) == 64 and settings["inception_score_splits"] == 1
    assert result.protocol == load(evaluated[0] / "noisy-70").protocol


def test_samples_and_pictures(evaluated):
    folder = evaluated[0] / "copies"
    result = load(folder)
    rows = read_samples(folder, result.samples)
    assert len(rows) == 400
    assert 0.3 < np.mean([row["distance"] < 1e-9 for row in rows]) < 0.7  # about half lie in the reference half
    assert Image.open(folder / "grid.png").size == ((16 * 9 + 1) * 4, (4 * 9 + 1) * 4)
    assert Image.open(folder / "neighbours.png").size == ((12 * 9 + 1) * 4, (2 * 9 + 1) * 4)
    assert np.mean([row["training_copy"] for row in rows]) == result.metric("training_copies_digits@400").value
    assert json.loads((folder / "results.json").read_text())["suite"] == "images"


def test_rows_and_files_are_those_of_the_users_sources(tmp_path):
    digits = load_images("embedded:digits").images
    (tmp_path / "made").mkdir()
    for number, image in enumerate(digits[:60]):
        Image.fromarray(image[0]).save(tmp_path / "made" / f"{number:03d}.png")
    config = ImagesConfig(output_dir=str(tmp_path / "out"), generators={"g": str(tmp_path / "made")}, max_images=40)
    STAGE.run(config, job(tmp_path / "out"))
    rows = read_samples(tmp_path / "out" / "g", load(tmp_path / "out" / "g").samples)
    assert len(rows) == 40 and [row["index"] for row in rows] != list(range(40))
    assert all(row["index_file"] == f"{row['index']:03d}.png" for row in rows)
    for field, distance in (("nearest_training", "training_distance"), ("nearest_real", "distance")):
        same = [(row["index"], row[field]) for row in rows if row[distance] == 0]
        assert same and all(np.array_equal(digits[made], digits[real]) for made, real in same)
        assert f"{field}_file" not in rows[0]  # the digits are no folder of pictures


def test_duplicates_are_noted(tmp_path):
    digits = load_images("embedded:digits").images
    source = save(tmp_path / "collapsed", digits[:10].repeat(4, axis=0))
    STAGE.run(
        ImagesConfig(output_dir=str(tmp_path / "out"), generators={"c": source}, baselines=False), job(tmp_path / "out")
    )
    result = load(tmp_path / "out" / "c")
    assert any("30 of 40 images are exact copies" in note for note in result.notes)
    assert any("mostly bias" in note for note in result.notes)
    assert result.protocol.n_items == 925 and result.protocol.split == "whole"


def test_what_the_images_resolve_is_told(evaluated):
    result = load(evaluated[0] / "noisy-70")
    (note,) = result.resolution
    for score in ("fd", "is", "kd", "md", "precision", "recall", "coverage", "training_copies"):
        entry = result.metric(f"{score}_digits@400")
        assert f"{entry.name} {resolvable_alone(entry):.3g}" in note
    assert "item by item" not in note  # two generators share no images


def test_every_metric_carries_extractor_and_n(evaluated):
    result = load(evaluated[0] / "noisy-70")
    names = ["fd", "is", "kd", "md", "cmmd", "extrapolated_fd", "precision", "recall", "density", "coverage",
             "training_copies", "nearer_to_training"]  # fmt: skip
    assert [m.name for m in result.metrics] == [f"{name}_digits@400" for name in names]
    assert all(m.ci_low <= m.value <= m.ci_high and m.ci_method for m in result.metrics)
    values = {m.name.split("_digits")[0]: m.value for m in result.metrics}
    assert 0 < values["extrapolated_fd"] < values["fd"]
    bounds = {m.name.split("_digits")[0]: m.bounds for m in result.metrics}
    assert (bounds["density"], bounds["fd"], bounds["is"]) == ((0, None), (0, None), (1, None))
    assert bounds["precision"] == (0, 1) and bounds["kd"] == (None, None)  # unbiased: it may be below 0


def test_labelled_generators_get_a_classification_accuracy(tmp_path):
    digits = load_images("embedded:digits::train")
    folder = tmp_path / "labelled"
    folder.mkdir()
    np.savez(folder / "samples.npz", images=digits.images[:200], labels=digits.labels[:200])
    config = ImagesConfig(output_dir=str(tmp_path / "out"), generators={"g": str(folder)})
    STAGE.run(config, job(tmp_path / "out"))
    entry = load(tmp_path / "out" / "g").metric("classification_accuracy@200")
    assert 0.8 < entry.ci_low < entry.value < entry.ci_high <= 1 and entry.n == 456
    assert load(tmp_path / "out" / "real-images-held-out").metric("classification_accuracy@200").value > 0.8
    names = [m.name for m in load(tmp_path / "out" / "independent-pixels").metrics]
    assert "classification_accuracy@200" not in names


def test_features_of_the_reference_are_taken_once(tmp_path):
    source = save(tmp_path / "generated", load_images("embedded:digits::eval").images[:60])
    settings = dict(generators={"g": source}, baselines=False, feature_cache=str(tmp_path / "cache"))
    first, second = job(tmp_path / "one"), job(tmp_path / "two")
    for made in (first, second):
        STAGE.run(ImagesConfig(output_dir=str(made.output_dir), **settings), made)
    assert max(first.beats) == 925 + 60 + 872 and max(second.beats) == 0
    one, two = (load(tmp_path / name / "g") for name in ("one", "two"))
    assert [m.value for m in one.metrics] == [m.value for m in two.metrics]


@pytest.mark.distributed
def test_two_ranks_give_the_numbers_of_one(tmp_path):
    source = save(tmp_path / "generated", load_images("embedded:digits::eval").images[:61])
    words = ["--generators.g", source, "--max_images", "61"]  # odd: a padding sampler would use one twice
    for world in (1, 2):
        out = tmp_path / f"out{world}"
        ended = run_forked(
            [*words, "--output_dir", out], tmp_path / f"log{world}", world, module="evaluation.suites.images"
        )
        assert [r.exitcode for r in ended.ranks] == [0] * world, ended.say()
    for name in ("g", "real-images-held-out", "independent-pixels"):
        one, two = (load(tmp_path / f"out{world}" / name) for world in (1, 2))
        assert [m.name for m in one.metrics] == [m.name for m in two.metrics]
        for a, b in zip(one.metrics, two.metrics, strict=True):
            assert (b.value, b.ci_low, b.ci_high) == pytest.approx((a.value, a.ci_low, a.ci_high), rel=1e-9), a.name


@pytest.mark.distributed
def test_a_saved_generator_is_sampled_first(tmp_path):
    train(tmp_path / "model", "vae", steps=2)
    assert is_model(str(tmp_path / "model")) and not is_model(str(tmp_path))
    config = ImagesConfig(
        output_dir=str(tmp_path / "out"),
        generators={"vae": str(tmp_path / "model")},
        sampled_images=24,
        baselines=False,
    )
    STAGE.run(config, job(tmp_path / "out"))
    result = load(tmp_path / "out" / "vae")
    assert result.metrics[0].name == "fd_digits@24" and result.subject.path == str(tmp_path / "model")
    assert (tmp_path / "out" / "vae" / "samples" / "provenance.json").is_file()
    assert result.metric("training_copies_digits@24").extra["training"] == "embedded:digits::train"
    assert "872 training images of embedded:digits::train, as the generator's provenance says." in result.notes[-1]


@pytest.mark.parametrize(
    ("code", "said", "sentence"),
    [
        (
            2,
            "loading\nalignkit: error: model: m: is damaged; make it again",
            r"\(model: m: is damaged; make it again\)$",
        ),
        (1, "Traceback ...\nKeyError: 'x'", r"\(exit code 1: KeyError: 'x'\)$"),
    ],
)
def test_a_generator_that_cannot_be_sampled_is_named(tmp_path, monkeypatch, code, said, sentence):
    (tmp_path / "model_index.json").write_text("{}")
    failed = SimpleNamespace(returncode=code, stderr=said)
    monkeypatch.setattr("evaluation.suites.images_sets.subprocess.run", lambda *words, **options: failed)
    config = ImagesConfig(output_dir=str(tmp_path / "out"), generators={"g": str(tmp_path)})
    with pytest.raises(UserError, match=rf"^generators.g: .* could not be sampled {sentence}"):
        STAGE.run(config, job(tmp_path / "out"))


def test_faults_are_named(tmp_path):
    with pytest.raises(UserError, match="generators: is empty"):
        build(ImagesConfig, {}, "recipe")
    with pytest.raises(UserError, match="'a-b' and 'a b' would share the folder"):
        build(ImagesConfig, {"generators": {"a b": "x", "a-b": "y"}}, "recipe")
    small = save(tmp_path / "small", np.zeros((30, 1, 4, 4), np.uint8))
    few = save(tmp_path / "few", np.zeros((5, 1, 8, 8), np.uint8))
    for name, source, message in (("s", small, r"generators.s: .*\(1, 4, 4\)"), ("f", few, "f: has 5 images")):
        config = ImagesConfig(output_dir=str(tmp_path / "out"), generators={name: source})
        with pytest.raises(UserError, match=message):
            STAGE.run(config, job(tmp_path / "out"))
    blank = save(tmp_path / "blank", np.zeros((40, 1, 8, 8), np.uint8))
    digits = save(tmp_path / "digits", load_images("embedded:digits").images[:40])
    one = save(tmp_path / "one", np.zeros((1, 1, 8, 8), np.uint8))
    for generated, reference, message in (
        (digits, blank, "reference: all 40 images of .*blank are the same picture"),
        (one, "embedded:digits::eval", "g: has 1 images; a score needs at least 20"),
        (digits, few, "reference: all 5 images"),
    ):
        config = ImagesConfig(
            output_dir=str(tmp_path / "out"), generators={"g": generated}, reference=reference, baselines=False
        )
        with pytest.raises(UserError, match=message):
            STAGE.run(config, job(tmp_path / "out"))
    np.savez(tmp_path / "blank.npz", images=np.zeros((0, 1, 8, 8), np.uint8))
    with pytest.raises(UserError, match=r"blank.npz: images have shape"):
        load_sets(ImagesConfig(output_dir=str(tmp_path), generators={"g": str(tmp_path / "blank.npz")}))


def test_a_generator_that_makes_one_picture_is_measured_and_said_so(tmp_path):
    source = save(tmp_path / "blank", np.zeros((40, 1, 8, 8), np.uint8))
    config = ImagesConfig(output_dir=str(tmp_path / "out"), generators={"g": source}, baselines=False)
    STAGE.run(config, job(tmp_path / "out"))
    result = load(tmp_path / "out" / "g")
    assert any("All 40 images are the same picture" in note for note in result.notes)
    assert all(np.isfinite([m.value, m.ci_low, m.ci_high]).all() for m in result.metrics)
    assert result.metric("is_digits@40").value == pytest.approx(1.0)


def test_independent_pixels_keep_the_margins():
    reference = load_images("embedded:digits::eval")
    found = independent_pixels(reference, 4000, 0).images.astype(float)
    assert np.abs(found.mean(0) - reference.images.mean(0)).max() < 8
    assert abs(np.corrcoef(found[:, 0, 3, 3], found[:, 0, 3, 4])[0, 1]) < 0.06


def test_grid_places_images_by_rows():
    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(2, 2).repeat(2, 3)
    sheet = image_grid(images, columns=2)[..., 0]
    assert sheet.shape == (7, 7)
    assert sheet[1, 1] == 0 and sheet[1, 4] == 1 and sheet[4, 1] == 2 and sheet[4, 4] == 255 and sheet[0, 0] == 255


def test_folder_names_are_safe():
    assert folder_name("../a b/ü") == "a-b" and folder_name("///") == "unnamed"
    assert len(folder_name("x" * 500)) == 80
