"""The suites from the command line and from Python. Several processes: tests/distributed/test_every_stage.py."""

import subprocess
import sys

import pytest

import evaluation
from evaluation.options import SCHEMA_VERSION
from evaluation.schema import load
from launch.cli import COMMANDS, NOT_STAGES, find_stage
from tests.evaluation.rows import write_completions
from tests.support import ROOT, environment


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


def test_every_evaluation_is_stale_when_its_results_are_of_another_schema():
    """Or a report would refuse what the evaluation calls up to date."""
    names = [name for name in COMMANDS if name.startswith("evaluate ") and name not in NOT_STAGES]
    found = {name: find_stage(name).version for name in names}
    assert len(found) == 9 and set(found.values()) == {SCHEMA_VERSION}


def test_python_interface():
    from evaluation import perplexity, win_rate

    assert win_rate([1, 0.5]).value == 0.75 and callable(perplexity)
    assert {"Leaderboard", "frechet_distance", "perplexity"} <= set(evaluation.__all__)
    with pytest.raises(AttributeError, match="no attribute 'bleu'"):
        evaluation.bleu
