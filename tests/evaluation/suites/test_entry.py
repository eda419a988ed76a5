"""The suites from the command line: `python -m evaluation`, and on two processes."""

import json
import subprocess
import sys

import pytest

import evaluation
from evaluation.schema import load
from evaluation.suites.reward import STAGE as REWARD
from evaluation.suites.text import STAGE
from tests.evaluation.rows import write_completions
from tests.evaluation.suites.conftest import run_suite
from tests.support import ROOT, accelerate_launch, environment


def test_python_m_evaluation_runs_a_suite(tmp_path):
    path = write_completions(tmp_path / "completions.jsonl", [{"prompt": "a", "completion": "b"}])
    command = [
        sys.executable,
        "-m",
        "evaluation",
        "safety",
        "--completions",
        str(path),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "out").metric("degenerate_rate").value == 0.0


@pytest.mark.distributed
def test_two_processes_give_the_numbers_of_one(models, tmp_path):
    documents = tmp_path / "d.jsonl"
    documents.write_text(
        "".join(json.dumps({"text": f"held-out text number {n} " * (1 + n % 3)}) + "\n" for n in range(7))
    )
    words = ["--model", models / "policy", "--documents", documents]
    flags = ["--cpu", "--num_machines", "1"]
    done = accelerate_launch("evaluation.suites.text", [*words, "--output_dir", tmp_path / "two"], 2, flags)
    assert done.returncode == 0, done.stderr[-3000:]
    one = run_suite(STAGE, tmp_path / "one", model=models / "policy", documents=documents)
    two = load(tmp_path / "two")
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert b.value == pytest.approx(a.value, rel=1e-6) and b.ci_low == pytest.approx(a.ci_low, rel=1e-6)
    assert two.samples.rows == 7


@pytest.mark.distributed
@pytest.mark.slow
def test_models_that_are_only_read_are_whole_under_zero3(models, tmp_path):
    """transformers would partition what it loads, and no engine would put the parts together for a forward pass."""
    pairs = [{"prompt": f"p{n} ", "chosen": f"good {n}", "rejected": f"bad {n * n}"} for n in range(5)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    values = {"model": models / "judge", "preferences": tmp_path / "pairs.jsonl"}
    words = [str(word) for key, value in values.items() for word in (f"--{key}", value)]
    flags = ["--config_file", str(ROOT / "launch" / "accelerate" / "zero3.yaml")]
    done = accelerate_launch("evaluation.suites.reward", [*words, "--output_dir", tmp_path / "two"], 2, flags)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = run_suite(REWARD, tmp_path / "one", **values), load(tmp_path / "two")
    assert two.metric("mean_margin").value == pytest.approx(one.metric("mean_margin").value, rel=1e-5)
    assert two.metric("accuracy").value == one.metric("accuracy").value


def test_python_interface():
    from evaluation import perplexity, win_rate

    assert win_rate([1, 0.5]).value == 0.75 and callable(perplexity)
    assert {"Leaderboard", "frechet_distance", "perplexity"} <= set(evaluation.__all__)
    with pytest.raises(AttributeError, match="no attribute 'bleu'"):
        evaluation.bleu
