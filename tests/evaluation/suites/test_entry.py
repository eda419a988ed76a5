"""The suites from the command line: `python -m evaluation`, and on two processes."""

import json
import subprocess
import sys

import pytest

import evaluation
from evaluation.schema import load
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


def test_python_interface():
    from evaluation import perplexity, win_rate

    assert win_rate([1, 0.5]).value == 0.75 and callable(perplexity)
    assert {"Leaderboard", "frechet_distance", "perplexity"} <= set(evaluation.__all__)
    with pytest.raises(AttributeError, match="no attribute 'bleu'"):
        evaluation.bleu
