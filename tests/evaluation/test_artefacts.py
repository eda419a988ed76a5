"""What every suite writes beside its numbers."""

from types import SimpleNamespace

import pytest

from evaluation.artefacts import save_result, trained_with, write_result
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject, load
from launch.files import write_json
from launch.provenance import hardware, package_versions


@pytest.fixture
def result():
    metrics = [Metric("accuracy", 0.5, 8, higher_is_better=True, unit="share")]
    return EvaluationResult("reward", Subject("m", "reward model", "m", "a" * 64), Protocol("d", "b" * 64, 8), metrics)


def job(folder, main):
    return SimpleNamespace(
        output_dir=folder, seconds=12.3456, runtime=SimpleNamespace(is_main=main), say=lambda text: None
    )


def test_a_result_holds_what_it_was_made_with(tmp_path, result):
    save_result(job(tmp_path, True), result, tmp_path)
    found = load(tmp_path)
    assert (found.versions, found.hardware, found.seconds) == (package_versions(), hardware(), 12.346)
    assert found.metrics == result.metrics and found.created == result.created


def test_the_main_rank_alone_writes(tmp_path, result):
    for main in (False, True):
        assert write_result(job(tmp_path, main), result) == {"accuracy": 0.5}
        assert (tmp_path / "results.json").exists() == main


def test_a_model_trained_with_what_it_is_measured_on_is_named(tmp_path):
    write_json(tmp_path / "provenance.json", {"inputs": {"data": {"path": "p.jsonl", "sha256": "c" * 64}}})
    (note,) = trained_with(str(tmp_path), "c" * 64, "judge")
    assert note.startswith("The judge was trained with this file")
    assert trained_with(str(tmp_path), "d" * 64, "judge") == []
