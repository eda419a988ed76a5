"""Every stage on two processes, under DDP and under DeepSpeed ZeRO 1, 2 and 3: the results of one, and exact resumes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data import load_preferences
from tests.distributed.every_stage import KINDS, RESUMED, TRAINED, make_plan, save_inputs
from tests.support import ROOT, accelerate_launch, environment, read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
DRIVER = "tests.distributed.every_stage"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def write_plan(inputs, one, out, resume):
    out.mkdir()
    plan = out / "plan.json"
    plan.write_text(json.dumps(make_plan(inputs, one, out, resume)))
    return plan


@pytest.fixture(scope="module")
def one(inputs):
    """The artefacts of one process."""
    out = inputs.with_name("one")
    command = [sys.executable, "-m", DRIVER, str(write_plan(inputs, out, out, resume=False))]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module", params=["cpu_ddp2", "zero1", "zero2", "zero3"])
def two(request, inputs, one):
    """The artefacts of two processes, made from those of one where a stage reads another's."""
    out = inputs.with_name(request.param)
    flags = ["--config_file", str(ROOT / "launch" / "accelerate" / f"{request.param}.yaml")]
    done = accelerate_launch(DRIVER, [str(write_plan(inputs, one, out, resume=True))], 2, flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("resuming after step") == len(RESUMED)
    provenance = [
        json.loads((folder / "provenance.json").read_text())
        for folder in sorted(out.iterdir())
        if folder.is_dir() and not folder.name.endswith("-whole")
    ]
    assert {p["world"] for p in provenance} == {2}
    assert {p["zero_stage"] for p in provenance} == {int(request.param[-1]) if "zero" in request.param else 0}
    return out


def close(a, b, tolerance):
    return a == b or abs(a - b) <= tolerance * max(1.0, abs(a))


@pytest.mark.parametrize("name", TRAINED)
def test_training_follows_one_process(one, two, name):
    rows = list(zip(read_metrics(one / name), read_metrics(two / name), strict=True))
    assert sum(len(row) > 2 for row, _ in rows) >= 4
    for a, b in rows:
        assert a.keys() == b.keys()
        assert all(close(a[k], b[k], 1e-4) for k in a), {k: (a[k], b[k]) for k in a if not close(a[k], b[k], 1e-4)}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_ends_the_same_to_the_bit(two, name):
    whole, resumed = two / f"{name}-whole", two / name
    assert read_metrics(whole) == read_metrics(resumed)
    files = [p.relative_to(resumed) for p in resumed.rglob("*.safetensors") if "checkpoints" not in p.parts]
    assert files and all((whole / f).read_bytes() == (resumed / f).read_bytes() for f in files)


@pytest.mark.parametrize("name", KINDS)
def test_generative_weights_are_those_of_one_process(one, two, name):
    (path,) = [p.relative_to(one / name) for p in (one / name).rglob("*.safetensors") if "checkpoints" not in p.parts]
    ours, theirs = load_file(one / name / path), load_file(two / name / path)
    assert ours.keys() == theirs.keys() and len(ours) > 5
    # a bias before a normalisation has a gradient of rounding errors alone, which Adam makes as large as any other
    atol = 2e-3 if name == "diffusion" else 1e-5
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], rtol=1e-3, atol=atol)


@pytest.mark.parametrize("name", ["text", "accuracy", "win-rate", "safety", "images", "deepfake"])
def test_evaluations_give_the_numbers_of_one_process(one, two, name):
    files = sorted(p.relative_to(one / name) for p in (one / name).rglob("results.json"))
    assert files
    for file in files:
        ours, theirs = (json.loads((folder / name / file).read_text())["metrics"] for folder in (one, two))
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            assert (a["name"], a["n"]) == (b["name"], b["n"])
            for key in ("value", "ci_low", "ci_high"):
                assert a[key] == b[key] or close(a[key], b[key], 1e-6), (a, b)


def test_what_is_drawn_is_the_same(one, two):
    for name in ("generate", "generate-other"):
        assert (one / name / "completions.jsonl").read_bytes() == (two / name / "completions.jsonl").read_bytes()
    for kind in KINDS:
        ours, theirs = (np.load(folder / f"{kind}-samples" / "samples.npz")["images"] for folder in (one, two))
        assert len(ours) == 41 and np.array_equal(ours, theirs)


def test_preferences_are_the_same(one, two):
    ours, theirs = (load_preferences(folder / "preferences" / "preferences.jsonl") for folder in (one, two))
    assert len(ours) > 3
    for a, b in zip(ours, theirs, strict=True):
        assert (a.prompt, a.chosen, a.rejected) == (b.prompt, b.chosen, b.rejected)
        assert a.strength == pytest.approx(b.strength, rel=1e-5)


def test_report_is_the_same(one, two):
    ours, theirs = ((folder / "report" / "leaderboard.csv").read_bytes() for folder in (one, two))
    assert ours == theirs and ours.count(b"\n") > 5
