"""Finding results and stages, their order and their parents."""

import json
import shutil

import pytest

from evaluation.report.collect import collect
from launch.errors import UserError


def test_everything_is_found_and_parents_come_first(lifecycle):
    found = collect([lifecycle])
    assert len(found.results) == 20 and len(found.stages) == 13
    names = [stage.name for stage in found.stages]
    parents = {stage.name: {names[p] for p in stage.parents} for stage in found.stages}
    assert parents["ppo"] == {"sft", "reward"} and parents["dpo"] == {"sft", "pairs"} and parents["pretrain"] == set()
    assert all(p < i for i, stage in enumerate(found.stages) for p in stage.parents)
    ppo = found.stages[names.index("ppo")]
    assert len(ppo.log) == 60 and found.stages[names.index("pretrain")].sources == ["embedded:python-prose"]


def test_parents_outside_the_folders_are_followed(lifecycle):
    found = collect([lifecycle / "ppo"])
    assert {stage.name for stage in found.stages} == {"ppo", "sft", "reward", "pairs", "pretrain"}


def test_what_is_not_entered(lifecycle, tmp_path):
    root = tmp_path / "demo"
    shutil.copytree(lifecycle, root)
    for name in ("report", ".hidden", "checkpoints", "ppo.previous"):
        shutil.copytree(lifecycle / "text-sft", root / name)
    (root / "loop").symlink_to(root)
    assert len(collect([root], leave_out=root / "report").results) == 20


def test_a_file_inside_a_stage_leads_to_that_stage(lifecycle, tmp_path):
    root = tmp_path / "demo"
    shutil.copytree(lifecycle, root)
    (root / "pairs" / "train.jsonl").write_text("{}\n")
    record = json.loads((root / "dpo" / "provenance.json").read_text())
    record["inputs"] = {"preferences": {"path": str(root / "pairs" / "train.jsonl"), "sha256": "0" * 64}}
    (root / "dpo" / "provenance.json").write_text(json.dumps(record))
    found = collect([root])
    names = [stage.name for stage in found.stages]
    assert [names[p] for p in found.stages[names.index("dpo")].parents] == ["pairs"]


def test_warnings_about_the_code(lifecycle, tmp_path):
    root = tmp_path / "demo"
    shutil.copytree(lifecycle, root)
    record = json.loads((root / "vae" / "provenance.json").read_text())
    record["code"] = {"commit": "f" * 40, "dirty": True}
    (root / "vae" / "provenance.json").write_text(json.dumps(record))
    assert collect([lifecycle]).warnings == []
    assert collect([root]).warnings == [
        "The stages ran with different versions of the code: 0123456789, ffffffffff.",
        "Run from code with uncommitted changes: vae.",
    ]


def test_records_that_point_in_a_circle_do_not_hang(tmp_path, lifecycle):
    for name in ("sft", "ppo"):
        shutil.copytree(lifecycle / name, tmp_path / name)
    for name, other in (("sft", "ppo"), ("ppo", "sft")):
        path = tmp_path / name / "provenance.json"
        record = json.loads(path.read_text())
        record["inputs"] = {"model": {"path": str(tmp_path / other), "sha256": "0" * 64}}
        path.write_text(json.dumps(record))
    assert len(collect([tmp_path]).stages) == 2


def test_faults_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        collect([tmp_path / "absent"])
    with pytest.raises(UserError, match="no run of alignkit is there; run an evaluation first"):
        collect([tmp_path])
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"no run there is finished, .*begun for one is not"):
        collect([tmp_path])
    with pytest.raises(UserError, match="no run of alignkit is there"):  # but for the report's own folder
        collect([tmp_path], leave_out=tmp_path / "begun")
    (tmp_path / "results.json").write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match="schema_version 99 is not 2"):
        collect([tmp_path])
    (tmp_path / "results.json").unlink()
    (tmp_path / "provenance.json").write_text('{"stage": "sft"}')
    with pytest.raises(UserError, match=r"provenance\.json: 'inputs' is missing"):
        collect([tmp_path])
