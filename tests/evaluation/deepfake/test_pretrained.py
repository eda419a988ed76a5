"""Any image classifier of transformers as a detector: its labels, its scores, and the matrix of one row."""

import functools
import signal

import numpy as np
import pytest
import torch

from evaluation.deepfake.detectors.pretrained import PretrainedDetector, _columns
from evaluation.schema import load
from evaluation.suites.deepfake import STAGE, DeepfakeConfig
from launch.errors import UserError
from tests.evaluation.deepfake.made import job, save, textures
from tests.evaluation.images.killed import die_writing
from tests.evaluation.resumed import check_same
from tests.forked import run_forked

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder of a ViT that has the labels of a detector and calls bright pictures fake."""
    from transformers import BitImageProcessor, ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    labels = {0: "Real", 1: "AI-generated"}
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=28, patch_size=14,
                       id2label=labels, label2id={v: k for k, v in labels.items()}, num_labels=2)  # fmt: skip
    model = ViTForImageClassification(config)
    model.save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return str(folder)


def test_scores_are_the_model_s_probabilities(classifier):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    images = textures(20, 28).repeat(3, axis=1)
    found = PretrainedDetector(classifier, "", CPU)
    inputs = AutoImageProcessor.from_pretrained(classifier)(images=list(images), return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForImageClassification.from_pretrained(classifier)(**inputs).logits.softmax(-1)[:, 1]
    assert found.prepare(images) == pytest.approx(expected.numpy(), abs=1e-5)
    assert "probability of: AI-generated" in found.description
    other = PretrainedDetector(classifier, "Real", CPU)
    assert other.prepare(images) == pytest.approx(1 - found.prepare(images), abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "wanted", "columns"),
    [
        (["Real", "Fake"], "", [1]),
        (["human", "midjourney_ai", "gan-generated"], "", [1, 2]),
        (["deepfake", "realism"], "", [0]),
        (["0", "1"], "1", [1]),
    ],
)
def test_the_label_that_says_so(labels, wanted, columns):
    assert _columns("m", dict(enumerate(labels)), wanted) == columns


def test_labels_that_do_not_say_so():
    with pytest.raises(UserError, match=r"none or all of the labels of m \(cat, paint"):
        _columns("m", {0: "cat", 1: "paint"}, "")
    with pytest.raises(UserError, match="has no label 'fakes'; did you mean 'fake'"):
        _columns("m", {0: "real", 1: "fake"}, "fakes")


def test_the_matrix_has_one_row(tmp_path, classifier):
    sources = {"a": save(tmp_path / "a", textures(90, 28, 1)), "b": save(tmp_path / "b", textures(90, 28, 2))}
    config = DeepfakeConfig(
        output_dir=str(tmp_path / "out"), real=save(tmp_path / "real", textures(160, 28)), generators=sources,
        detector="pretrained", model=classifier, resamples=20, robustness=["jpeg:50"],
    )  # fmt: skip
    STAGE.run(config, job(tmp_path / "out"))
    result = load(tmp_path / "out")
    rows = [part for part in result.slices if part.group == "trained on"]
    assert [part.name for part in rows] == ["(as it is)"] and [m.name for m in rows[0].metrics] == [
        "auc on a",
        "auc on b",
    ]
    assert result.subject.name == "pretrained detector" and "auc_own_generator" not in [m.name for m in result.metrics]
    assert result.metric("auc_other_generators").value == pytest.approx(np.mean([m.value for m in rows[0].metrics]))
    assert load(tmp_path / "out" / "a").metric("auc").value == rows[0].metrics[0].value


@pytest.mark.distributed
def test_a_killed_evaluation_ends_with_the_same_results(tmp_path, classifier):
    sources = {name: save(tmp_path / name, textures(90, 28, k)) for k, name in enumerate(("a", "real"))}
    words = ["--generators.a", sources["a"], "--real", sources["real"], "--resamples", 20]
    words += ["--detector", "pretrained", "--model", classifier, "--robustness", "[jpeg:50]"]

    def run(out, hook=None):
        ended = run_forked(
            [*words, "--output_dir", out], tmp_path / "logs", 1, hook=hook, module="evaluation.suites.deepfake"
        )
        return [r.exitcode for r in ended.ranks], ended.say()

    assert run(tmp_path / "whole")[0] == [0]
    out = tmp_path / "killed"
    codes, said = run(out, functools.partial(die_writing, rank=0, blocks=3))
    assert codes == [-signal.SIGKILL] and not (out / "results.json").exists(), said
    assert len(list((out / "scored").iterdir())) == 3
    codes, said = run(out, functools.partial(die_writing, rank=0, blocks=2))
    assert codes == [0], said  # two more, and no third
    check_same(out / "a", tmp_path / "whole" / "a")
    assert not (out / "scored").exists()
