"""The stage `evaluate images` on small sets of digits."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import load_images
from evaluation.images.extractors import TRAINED_ON, count_seen
from evaluation.images.grid import image_grid
from evaluation.schema import load, read_samples
from evaluation.suites.images import PIXELS, REAL, STAGE, ImagesConfig, folder_name
from evaluation.suites.images_run import independent_pixels, load_sets
from generative.train import TrainConfig
from launch.config import build
from launch.errors import UserError


def job(folder):
    runtime = SimpleNamespace(is_main=True, device=torch.device("cpu"))
    return SimpleNamespace(output_dir=Path(folder), runtime=runtime, say=lambda text: None, beat=lambda step: None)


def save(folder, images):
    folder.mkdir()
    np.savez(folder / "samples.npz", images=images)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def trained_once(digits_extractor):
    """The stage trains its extractor anew each time, always to the same weights: the tests share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.suites.images_run.prepare_digits", lambda folder: digits_extractor)
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
    assert count_seen(load_images("embedded:digits")) == 872 and count_seen(load_images("embedded:digits::eval")) == 0
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
    assert json.loads((folder / "results.json").read_text())["suite"] == "images"


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
