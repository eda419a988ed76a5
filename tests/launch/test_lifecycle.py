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
    assert [s.needs for s in plan] == [frozenset(), {"a"}]
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
        ({"stages": {"a": {"command": "ppo", "alone": "yes"}}}, {}, "stages.a: alone: 'yes' is not true or false"),
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


def test_stages_that_need_nothing_of_each_other_run_side_by_side(tmp_path):
    completions(tmp_path / "c.jsonl", 4)
    entry = {"command": "preferences build", "config": {"completions": [str(tmp_path / "c.jsonl")]}}
    broken = {"command": "preferences build", "config": {"completions": [str(tmp_path / "none.jsonl")]}}
    after = {"command": "report", "config": {"inputs": ["@one", "@two"], "show": False}}
    recipe = tmp_path / "life.yaml"
    recipe.write_text(json.dumps({"jobs": 2, "stages": {"one": entry, "two": entry, "three": broken, "four": after}}))
    result = alignkit("run", recipe, "--output_dir", tmp_path / "out")
    said = [line for line in result.stderr.splitlines() if line.startswith("[")]
    started = {line.split()[1].strip(":"): n for n, line in enumerate(said) if ": alignkit" in line}
    done = {line.split()[1].strip(":"): n for n, line in enumerate(said) if ": done in" in line}
    assert started["two"] < min(done.values()) < started["three"], said
    assert result.returncode == 2 and "none.jsonl" in result.stderr
    assert set(done) >= {"one", "two"} and "three" not in done


def test_a_stage_that_is_alone_has_nothing_beside_it(tmp_path):
    completions(tmp_path / "c.jsonl", 4)
    entry = {"command": "preferences build", "config": {"completions": [str(tmp_path / "c.jsonl")]}}
    recipe = tmp_path / "life.yaml"
    stages = {"one": entry, "two": {**entry, "alone": True}, "three": entry, "four": entry}
    recipe.write_text(json.dumps({"jobs": 4, "stages": stages}))
    result = alignkit("run", recipe, "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    said = [line.split(": ") for line in result.stderr.splitlines() if ": alignkit" in line or ": done in" in line]
    order = [(head.split()[1], what.split()[0]) for head, what in said]
    assert order[:4] == [("one", "alignkit"), ("one", "done"), ("two", "alignkit"), ("two", "done")], order
    assert {name for name, what in order[4:6]} == {"three", "four"}
    assert [what for _, what in order[4:]] == ["alignkit", "alignkit", "done", "done"]


@pytest.mark.parametrize("jobs", ["0", "two", "-1", "1.5"])
def test_jobs_is_a_positive_integer(tmp_path, jobs):
    recipe = tmp_path / "life.yaml"
    recipe.write_text(json.dumps({"stages": STAGES}))
    result = alignkit("run", recipe, "--output_dir", tmp_path / "out", "--jobs", jobs)
    assert result.returncode == 2 and f"jobs: '{jobs}' is not a positive integer" in result.stderr
    assert not (tmp_path / "out").exists()


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
