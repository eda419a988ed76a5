"""`alignkit run`: order, references, skipping, resuming, errors."""

import json

import pytest

from launch.errors import UserError
from launch.files import read_json
from launch.lifecycle import is_up_to_date, plan_stages
from tests.support import alignkit

STAGES = {
    "a": {"command": "generate", "config": {"prompts": "p"}},
    "b": {"command": "ppo", "config": {"policy": "@a", "prompts": ["@a/x::train"]}},
}


def test_references_resolve_to_earlier_stages(tmp_path):
    plan = plan_stages({"stages": STAGES}, "r.yaml", tmp_path, {"b": {"seed": "4"}})
    assert [s.name for s in plan] == ["a", "b"]
    assert plan[1].config == {"policy": str(tmp_path / "a"), "prompts": [f"{tmp_path}/a/x::train"], "seed": "4"}


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ({"stages": {}}, {}, "'stages' is missing or empty"),
        ({"stage": {}}, {}, "unknown key 'stage'; did you mean 'stages'"),
        ({"stages": {"a": {"config": {}}}}, {}, "stages.a: 'command' is missing"),
        ({"stages": {"a": {"command": "pppo"}}}, {}, "unknown command 'pppo'; did you mean 'ppo'"),
        ({"stages": {"a": {"command": "ppo", "confg": {}}}}, {}, "unknown key 'confg'; did you mean 'config'"),
        (
            {"stages": {"b": {"command": "ppo", "config": {"policy": "@a"}}, "a": {"command": "sft"}}},
            {},
            "'@a' refers to a stage that does not come before it",
        ),
        ({"stages": STAGES}, {"c": {}}, "no stage 'c'"),
    ],
)
def test_faults_in_a_lifecycle(tmp_path, recipe, overrides, message):
    with pytest.raises(UserError, match=message):
        plan_stages(recipe, "r.yaml", tmp_path, overrides)


def completions(path, n):
    rows = [
        {"prompt": f"p{i}", "completion": f"sample {i}", "reference": f"human {i}", "finished": True} for i in range(n)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_stages_run_skip_and_run_again_when_an_input_changes(tmp_path):
    completions(tmp_path / "c.jsonl", 4)
    entry = {"command": "preferences build", "config": {"completions": [str(tmp_path / "c.jsonl")]}}
    recipe = tmp_path / "life.yaml"
    recipe.write_text(json.dumps({"stages": {"one": entry, "two": entry}, "show": ["@one/README.md"]}))
    words = ["run", recipe, "--output_dir", tmp_path / "out"]
    first = alignkit(*words)
    assert first.returncode == 0, first.stderr
    assert read_json(tmp_path / "out" / "two" / "provenance.json")["summary"]["pairs"] == 4
    assert "# one" in first.stdout

    second = alignkit(*words)
    assert second.returncode == 0
    assert second.stderr.count("up to date") == 2 and "# one" in second.stdout

    completions(tmp_path / "c.jsonl", 3)
    third = alignkit(*words, "--stages", "two")
    assert third.returncode == 0, third.stderr
    assert read_json(tmp_path / "out" / "two" / "provenance.json")["summary"]["pairs"] == 3
    assert read_json(tmp_path / "out" / "two.previous" / "provenance.json")["summary"]["pairs"] == 4
    assert read_json(tmp_path / "out" / "one" / "provenance.json")["summary"]["pairs"] == 4


def test_a_failing_stage_ends_the_lifecycle_with_its_code(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"prompt": "p", "completion": "x", "reference": null}\n')
    recipe = tmp_path / "life.yaml"
    entry = {"command": "preferences build", "config": {"completions": [str(tmp_path / "c.jsonl")]}}
    recipe.write_text(json.dumps({"stages": {"one": entry, "two": entry}}))
    result = alignkit("run", recipe, "--output_dir", tmp_path / "out")
    assert result.returncode == 2
    assert "no row has a reference that differs" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "two").exists()
    plan = plan_stages({"stages": {"one": entry}}, "r", tmp_path / "out", {})
    assert not is_up_to_date(plan[0])
