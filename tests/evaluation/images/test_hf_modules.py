"""The modules for Hugging Face `evaluate`, loaded by it from their folders as a user does."""

import json
import subprocess
import sys

import numpy as np
import pytest

from data.images import load_images
from evaluation.images.intervals import (
    cmmd_estimate,
    extrapolated_estimate,
    frechet_estimate,
    inception_estimate,
    kernel_estimate,
    manifold_estimates,
    mind_estimate,
)
from tests.support import ROOT, environment

pytest.importorskip("evaluate", reason="the package `evaluate` is not installed")
MODULES = ROOT / "evaluation" / "hf_modules"

SCRIPT = """
import json, sys
import evaluate, numpy as np
folder, inputs = sys.argv[1:]
data = np.load(inputs)
x, y, found = data["x"], data["y"], {}
for name in ("frechet_distance", "extrapolated_frechet_distance", "kernel_distance", "cmmd", "mind",
             "precision_recall_density_coverage", "inception_score"):
    found[name] = evaluate.load(f"{folder}/{name}").compute(predictions=x, references=y)
stream = evaluate.load(f"{folder}/frechet_distance")
for part in np.array_split(x, 3):
    stream.add_batch(predictions=part)
for row in y[:5]:
    stream.add(reference=row)
found["streamed"] = stream.compute(references=y[5:], seed=1)
found["splits"] = evaluate.load(f"{folder}/inception_score").compute(predictions=x, splits=2)
cas = evaluate.load(f"{folder}/classification_accuracy_score")
found["cas"] = cas.compute(predictions=data["train"], references=data["test"])
faults = {}
for name, given in (("empty", {}), ("one_side", {"predictions": x}), ("vector", {"predictions": x[0], "references": y}),
                    ("mixed", {"predictions": x, "references": y[:, :3]})):
    try:
        evaluate.load(f"{folder}/mind").compute(**given)
    except ValueError as error:
        faults[name] = str(error)
print(json.dumps({"found": found, "faults": faults, "description": evaluate.load(f"{folder}/mind").description}))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    x, y = np.random.default_rng(1).standard_normal((60, 6)) + 0.4, np.random.default_rng(2).standard_normal((75, 6))

    def rows(source, count):
        images = load_images(source).sample(count, 0)
        return np.hstack([images.labels[:, None], images.images.reshape(count, -1)])

    train, test = rows("embedded:digits::train", 300), rows("embedded:digits::eval", 200)
    np.savez(folder / "inputs.npz", x=x, y=y, train=train, test=test)
    command = [sys.executable, "-c", SCRIPT, str(MODULES), str(folder / "inputs.npz")]
    env = environment(HF_HOME=str(folder / "home"), HF_EVALUATE_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return x, y, json.loads(done.stdout.strip().split("\n")[-1])


def test_every_folder_is_a_module_that_is_tested():
    folders = {path.parent.name for path in MODULES.glob("*/*.py") if path.stem == path.parent.name}
    assert all(name in SCRIPT for name in folders) and len(folders) == 8


@pytest.mark.slow
def test_modules_give_our_estimates_for_sets_of_different_sizes(answers):
    x, y, said = answers
    expected = {
        "frechet_distance": frechet_estimate(x, y, 0),
        "streamed": frechet_estimate(x, y, 1),
        "extrapolated_frechet_distance": extrapolated_estimate(x, y, 0)[1],
        "kernel_distance": kernel_estimate(x, y),
        "cmmd": cmmd_estimate(x, y),
        "mind": mind_estimate(x, y, 0),
        "inception_score": inception_estimate(x, 1, 0),
        "splits": inception_estimate(x, 2, 0),
    }
    for name, estimate in expected.items():
        found = said["found"][name]
        limits = (found["value"], found["ci_low"], found["ci_high"])
        assert limits == pytest.approx((estimate.value, estimate.low, estimate.high), rel=1e-9), name
        assert found["n"] == 60 and found["ci_method"] == estimate.method
    for name, estimate in manifold_estimates(x, y, 0)[1].items():
        assert said["found"]["precision_recall_density_coverage"][name]["value"] == pytest.approx(estimate.value)
    assert 0.85 < said["found"]["cas"]["value"] <= 1 and said["found"]["cas"]["n"] == 200
    assert "sliced squared Wasserstein" in said["description"]


@pytest.mark.slow
def test_faults_are_one_sentence(answers):
    faults = answers[2]["faults"]
    assert faults["empty"] == "there are no features; give predictions and references"
    assert faults["one_side"] == "references: there are no features; give some"
    assert "must be a matrix" in faults["vector"] and "[3, 6] dimensions" in faults["mixed"]
