"""From a number to the command that made it."""

import shlex
from pathlib import Path

from evaluation.report.collect import FoundResult, FoundStage, collect
from evaluation.report.commands import command_of, origin_of
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject
from launch.config import load_config
from launch.files import write_json
from tests.evaluation.report.test_report_suite import write_report

CONFIG = {"output_dir": "out dir", "seed": 3, "model": "runs/ppo", "generators": {"vae": "a", "gan": "b c"}, "show": False,
          "inputs": ["x", "y"], "empty": "", "nothing": None, "none": []}  # fmt: skip


def stage(name, parents, folder="/runs"):
    record = {
        "stage": "evaluate text",
        "config": {"model": name},
        "inputs": {},
        "seconds": 1.0,
        "content_sha256": "c" * 64,
    }
    return FoundStage(name, Path(folder) / name, record, [], parents)


def result(folder):
    made = EvaluationResult("s", Subject("a", "language model"), Protocol("d", "a" * 64, 1), [Metric("x", 1.0, 1)])
    return FoundResult(Path(folder), made)


def test_a_command_holds_every_field():
    words = shlex.split(command_of({"stage": "evaluate images", "config": CONFIG}))
    assert words[:3] == ["alignkit", "evaluate", "images"]
    pairs = dict(zip(words[3::2], words[4::2]))
    assert pairs == {"--output_dir": "out dir", "--seed": "3", "--model": "runs/ppo", "--generators.vae": "a",
                     "--generators.gan": "b c", "--show": "false", "--inputs": "x,y"}  # fmt: skip


def test_a_command_is_read_back_as_the_same_config():
    from evaluation.suites.report import ReportConfig
    from launch.config import to_dict

    config = ReportConfig(output_dir="a b", inputs=["x", "y"], title="It's <b>", show=False, seed=5)
    words = shlex.split(command_of({"stage": "report", "config": to_dict(config)}))
    assert load_config(ReportConfig, words[2:]) == config


def test_a_result_comes_from_its_own_run_or_the_one_around_it():
    stages = [stage("pretrain", []), stage("sft", [0]), stage("evaluate", [1]), stage("other", [])]
    found = origin_of(result("/runs/evaluate"), stages)
    assert (found.stage, found.before) == (2, [(0, "pretrain"), (1, "sft")])
    assert found.command == "alignkit evaluate text --model evaluate"
    assert origin_of(result("/runs/evaluate/vae"), stages).stage == 2
    assert origin_of(result("/elsewhere"), stages) is None


def test_the_page_has_the_command_of_every_number(lifecycle, tmp_path):
    folder = tmp_path / "runs" / "evaluate-sft"
    folder.mkdir(parents=True)
    result(folder).result.save(folder)
    write_json(
        folder / "provenance.json",
        {"stage": "evaluate text", "config": {"model": "m <b>"}, "inputs": {"model": {"path": str(lifecycle / "sft"), "sha256": "0"}},
         "seconds": 1.0, "content_sha256": "0" * 64, "versions": {}, "started": 1_790_001_000.0},
    )  # fmt: skip
    assert len(collect([tmp_path / "runs"]).stages) == 3
    write_report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "alignkit evaluate text --model &#39;m &lt;b&gt;&#39;" in page
    entry = page[page.index('id="evaluation-0"') :]
    assert entry.index('">evaluate-sft</a>, after <a href="#stage-0">pretrain</a>, <a href="#stage-1">sft</a>') > 0
