"""`alignkit run`: order, references, skipping, resuming, errors."""

import datetime
import json
import multiprocessing
import subprocess
import sys
from types import SimpleNamespace

import pytest

from launch import lifecycle
from launch.cli import COMMANDS
from launch.config import load_config, read_yaml
from launch.errors import UserError
from launch.files import read_json, sha256_text, write_json
from launch.lifecycle import Schedule, is_up_to_date
from launch.plan import check_configs, plan_stages
from launch.stage_process import arguments_of, environment_of
from tests.commands import run_command, run_lifecycle
from tests.launch.toy import LAUNCHER, ToyConfig
from tests.support import ROOT, alignkit, environment

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
        ({"stages": {"a": {"command": "ppo", "config": "hello"}}}, {}, "stages.a: config: 'hello' is not a mapping"),
        ({"stages": {"a": {"command": "ppo", "launcher": ["x"]}}}, {}, r"stages.a: launcher: \['x'\] is not text"),
        ({"stages": {"a": {"command": "ppo", 5: 1}}}, {}, "stages.a: unknown key '5'"),
        ({"stages": {5: {"command": "ppo"}}}, {}, "stages: the name 5 is not text"),
        ({"stages": STAGES, 5: 1}, {}, "unknown key '5'"),
        ({"stages": STAGES, "show": 5}, {}, "show: 5 is not a list"),
        ({"stages": STAGES}, {"b": "5"}, "command line: --b: '5' is for no key of the stage; write --b.KEY VALUE"),
    ],
)
def test_faults_in_a_lifecycle(tmp_path, recipe, overrides, message):
    with pytest.raises(UserError, match=message):
        plan_stages(recipe, "r.yaml", tmp_path, overrides)


def test_a_seed_moves_those_of_all_stages_and_keeps_them_apart(tmp_path):
    stages = {
        "a": {"command": "generate", "config": {"prompts": "p", "seed": 3}},
        "b": {"command": "generate", "config": {"prompts": "p", "seed": 4}},
        "c": {"command": "sft"},
        "d": {"command": "ppo", "config": {"policy": "@c"}},
    }
    plans = [plan_stages({"stages": stages}, "r", tmp_path, {"d": {"seed": "7"}}, seed) for seed in (0, 1, 2)]
    seeds = [[stage.config.get("seed") for stage in plan] for plan in plans]
    assert seeds == [[3, 4, None, "7"], [1003, 1004, 1000, "7"], [2003, 2004, 2000, "7"]]
    prints = [[stage.fingerprint for stage in plan] for plan in plans]
    assert prints[0] == [s.fingerprint for s in plan_stages({"stages": stages}, "r", tmp_path, {"d": {"seed": "7"}})]
    assert [len(set(column)) for column in zip(*prints, strict=True)] == [3, 3, 3, 1]  # what ran before is stale


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--seed", "one"], ["--seed.x", "1"]])
def test_a_seed_is_an_integer(tmp_path, words):
    (tmp_path / "r.yaml").write_text("stages: {a: {command: sft}}")
    with pytest.raises(UserError, match=r"seed: .* is no integer of 0 or more"):
        lifecycle.main([str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "out"), *words])


def test_values_that_json_lacks_reach_the_stage_as_text(tmp_path):
    config = {"learning_rate": float("nan"), "name": datetime.date(2026, 1, 2), 3: 4}
    plan = plan_stages({"stages": {"a": {"command": "ppo", "config": config}}}, "r.yaml", tmp_path, {})
    assert plan[0].config == {"learning_rate": "nan", "name": "2026-01-02", "3": 4}


class Started:
    """A RunningStage that runs nothing."""

    def __init__(self, stage, head, environment, later):
        self.stage, self.process = stage, SimpleNamespace(sentinel=stage.name)


def test_what_is_up_to_date_needs_no_place_and_holds_nobody_up(tmp_path, monkeypatch):
    stages = {
        "a": {"command": "generate"},
        "b": {"command": "generate", "alone": True},
        "c": {"command": "ppo", "config": {"policy": "@b"}},
        "d": {"command": "ppo", "config": {"policy": "@a"}},
        "e": {"command": "generate"},
        "f": {"command": "ppo", "config": {"policy": "@d"}},
    }
    seen = []
    for name in "bde":
        write_json(tmp_path / name / "provenance.json", {})
    monkeypatch.setattr(lifecycle, "RunningStage", Started)
    monkeypatch.setattr(lifecycle, "is_up_to_date", lambda stage: seen.append(stage.name) or stage.name in "bde")
    schedule = Schedule(plan_stages({"stages": stages}, "r.yaml", tmp_path, {}), jobs=2)
    for _ in range(2):
        schedule.skip_finished()
        schedule.start_next()
    assert set(schedule.running) == {"a", "c"} and [s.name for s in schedule.waiting] == ["d", "f"]
    assert sorted(seen) == ["a", "b", "c", "e"]  # once each: asking hashes the inputs
    del schedule.running["a"]
    schedule.skip_finished()
    schedule.start_next()
    assert set(schedule.running) == {"c", "f"} and not schedule.waiting


def test_a_stage_whose_artefact_lost_a_file_is_not_up_to_date(tmp_path):
    plan = plan_stages({"stages": {"a": {"command": "generate"}}}, "r.yaml", tmp_path, {})
    write_json(tmp_path / "a" / "provenance.json", {"inputs": {}, "files": {"model": 3}})
    write_json(tmp_path / "a" / ".recipe.json", {"fingerprint": plan[0].fingerprint})
    (tmp_path / "a" / "model").write_text("abc")
    assert is_up_to_date(plan[0])
    (tmp_path / "a" / "model").write_text("ab")
    assert not is_up_to_date(plan[0])
    (tmp_path / "a" / "model").unlink()
    assert not is_up_to_date(plan[0])


def test_a_damaged_artefact_is_made_again_before_it_is_used(tmp_path, monkeypatch):
    """Names and sizes are what they were: only reading the files tells. What was skipped after it is judged anew."""
    stages = {
        "base": {"command": "generate"},
        "other": {"command": "generate"},
        "mid": {"command": "ppo", "config": {"policy": "@base"}},
        "top": {"command": "ppo", "config": {"policy": "@mid"}},
        "new": {"command": "ppo", "config": {"policy": "@mid", "reward": "@base", "prompts": "@other"}},
    }
    judged = []
    for name in ("base", "mid", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text("abc")
        record = {"files": {"model": 3}, "files_sha256": {"model": sha256_text("abd" if name == "base" else "abc")}}
        write_json(tmp_path / name / "provenance.json", record)
    monkeypatch.setattr(lifecycle, "RunningStage", Started)
    monkeypatch.setattr(lifecycle, "is_up_to_date", lambda stage: judged.append(stage.name) or stage.name != "new")
    schedule = Schedule(plan_stages({"stages": stages}, "r.yaml", tmp_path, {}), jobs=1)
    for _ in range(2):
        schedule.skip_finished()
        schedule.start_next()
    assert set(schedule.running) == {"base"} and [s.name for s in schedule.waiting] == ["mid", "top", "new"]
    del schedule.running["base"]
    schedule.skip_finished()
    schedule.start_next()
    assert set(schedule.running) == {"new"} and not schedule.waiting
    assert sorted(judged) == ["base", "mid", "mid", "new", "other", "top", "top"]


def test_an_edited_artefact_of_a_lifecycle_is_made_again_when_a_stage_uses_it(tmp_path):
    completions(tmp_path / "c.jsonl", 4)
    one = {"command": "preferences build", "config": {"completions": [str(tmp_path / "c.jsonl")]}}
    two = {"command": "report", "config": {"inputs": ["@one"], "show": False}}
    recipe = tmp_path / "life.yaml"
    recipe.write_text(json.dumps({"stages": {"one": one, "two": two}}))
    words = [recipe, tmp_path / "out"]
    first = run_lifecycle(*words)
    assert first.returncode == 0, first.stderr
    edited = tmp_path / "out" / "one" / "preferences.jsonl"
    text = edited.read_text()
    edited.write_text(text.replace("human", "humin"))
    again = run_lifecycle(*words, "--two.title", "Other")
    assert again.returncode == 0, again.stderr
    assert f"{edited} is gone or has changed" in again.stderr and edited.read_text() == text
    said = [line for line in again.stderr.splitlines() if line.startswith("[1/2]")]
    assert [line.split(": ")[1].split()[0] for line in said] == ["up", "alignkit", "done"], said


def test_a_folder_as_output_dir_must_be_one(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "life.yaml").write_text(json.dumps({"stages": STAGES}))
    with pytest.raises(UserError, match="file is a file; name a folder"):
        lifecycle.main([str(tmp_path / "life.yaml"), "--output_dir", str(tmp_path / "file")])


def completions(path, n, reference="human {}"):
    ids = {"prompt_ids": [3], "completion_ids": [4, 5]}
    rows = [
        {"id": i, "prompt": f"p{i}", "completion": f"sample {i}", "reference": reference.format(i), **ids}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps({**r, "finished": True}) + "\n" for r in rows))


def test_stages_run_skip_and_run_again_when_an_input_changes(tmp_path):
    completions(tmp_path / "c.jsonl", 4)
    entry = {"command": "preferences build", "config": {"completions": [str(tmp_path / "c.jsonl")]}}
    recipe = tmp_path / "life.yaml"
    recipe.write_text(json.dumps({"stages": {"one": entry, "two": entry}, "show": ["@one/README.md"]}))
    words = [recipe, tmp_path / "out"]
    first = run_lifecycle(*words)
    assert first.returncode == 0, first.stderr
    assert read_json(tmp_path / "out" / "two" / "provenance.json")["summary"]["pairs"] == 4
    assert "# one" in first.stdout

    second = run_lifecycle(*words)
    assert second.returncode == 0
    assert second.stderr.count("up to date") == 2 and "# one" in second.stdout

    completions(tmp_path / "c.jsonl", 3)
    third = run_lifecycle(*words, "--stages", "two")
    assert third.returncode == 0, third.stderr
    assert read_json(tmp_path / "out" / "two" / "provenance.json")["summary"]["pairs"] == 3
    assert read_json(tmp_path / "out" / "two.previous" / "provenance.json")["summary"]["pairs"] == 4
    assert read_json(tmp_path / "out" / "one" / "provenance.json")["summary"]["pairs"] == 4


@pytest.mark.parametrize("shown", [{}, {"show": ["@two/leaderboard.txt", "@two/index.html"]}])
def test_a_leaderboard_is_printed_once_also_when_it_was_up_to_date(tmp_path, shown):
    completions(tmp_path / "c.jsonl", 4)
    one = {"command": "preferences build", "config": {"completions": [str(tmp_path / "c.jsonl")]}}
    two = {"command": "report", "config": {"inputs": ["@one"]}}
    (tmp_path / "life.yaml").write_text(json.dumps({"stages": {"one": one, "two": two}, **shown}))
    for _ in range(2):
        result = run_lifecycle(tmp_path / "life.yaml", tmp_path / "out")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("No evaluation lies in these folders") == 1, result.stdout
        assert result.stdout.count("index.html") == 1


def test_stages_that_need_nothing_of_each_other_run_side_by_side(tmp_path):
    completions(tmp_path / "c.jsonl", 4)
    entry = {"command": "preferences build", "config": {"completions": [str(tmp_path / "c.jsonl")]}}
    broken = {"command": "preferences build", "config": {"completions": [str(tmp_path / "none.jsonl")]}}
    after = {"command": "report", "config": {"inputs": ["@one", "@two"], "show": False}}
    recipe = tmp_path / "life.yaml"
    recipe.write_text(json.dumps({"jobs": 2, "stages": {"one": entry, "two": entry, "three": broken, "four": after}}))
    result = run_lifecycle(recipe, tmp_path / "out")
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
    result = run_lifecycle(recipe, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    said = [line.split(": ") for line in result.stderr.splitlines() if ": alignkit" in line or ": done in" in line]
    order = [(head.split()[1], what.split()[0]) for head, what in said]
    assert order[:4] == [("one", "alignkit"), ("one", "done"), ("two", "alignkit"), ("two", "done")], order
    assert {name for name, what in order[4:6]} == {"three", "four"}
    assert [what for _, what in order[4:]] == ["alignkit", "alignkit", "done", "done"]


def run_toys(tmp_path, jobs, stages):
    recipe = {"jobs": jobs, "stages": {name: {"command": "toy", **entry} for name, entry in stages.items()}}
    (tmp_path / "life.yaml").write_text(json.dumps(recipe))
    return run_command("tests.commands:toys", tmp_path / "life.yaml", "--output_dir", "out", cwd=tmp_path)


def test_the_last_words_are_the_stages_that_failed_and_why(tmp_path):
    stages = {
        "wrong": {"config": {"source": "nowhere"}},
        "killed": {"config": {"die_at": 1}},
        "broken": {"config": {"crash_at": 1}},
        "slow": {"config": {"steps": 4, "pause": 1}},
        "later": {"config": {"source": "@wrong"}},
    }
    result = run_toys(tmp_path, 4, stages)
    assert result.returncode in (1, 2, 137) and "[5/5]" not in result.stderr, result.stderr
    failed = [line for line in result.stderr.splitlines() if ": failed: " in line]
    expected = [
        "[1/5] wrong: failed: source: nowhere: no such file or folder",
        "[2/5] killed: failed: killed by signal 9; run the same command again to resume",
        "[3/5] broken: failed: ZeroDivisionError: a bug of the stage (its traceback is above)",
    ]
    assert all(any(line.startswith(words) for line in failed) for words in expected), result.stderr
    assert ": failed: " in result.stderr.splitlines()[-1]


@pytest.mark.distributed
def test_the_last_words_are_those_of_a_rank_not_of_the_launcher(tmp_path):
    result = run_toys(tmp_path, 1, {"bad": {"config": {"source": "nowhere"}, "launcher": LAUNCHER}})
    last = result.stderr.splitlines()[-1]
    assert last.startswith("[1/1] bad: failed: ") and "source: nowhere: no such file or folder" in last, result.stderr


def test_why_a_stage_failed_is_said_again_when_others_ran_on(tmp_path):
    stages = {name: {"command": "ppo"} for name in "abc"}
    schedule = Schedule(plan_stages({"stages": stages}, "r.yaml", tmp_path, {}), jobs=3)
    pipes = [multiprocessing.Pipe() for _ in range(3)]
    for (reader, _), failure in zip(pipes, ("first", "", "last"), strict=True):
        schedule.running[reader] = SimpleNamespace(failure=failure, finish=lambda _, code=len(failure): code)
    for _, writer in pipes:
        writer.close()
        schedule.wait()
    assert schedule.code and schedule.last_words == ["first"]  # nothing was said after the other one


@pytest.mark.parametrize("jobs", ["0", "two", "-1", "1.5"])
def test_jobs_is_a_positive_integer(tmp_path, jobs):
    recipe = tmp_path / "life.yaml"
    recipe.write_text(json.dumps({"stages": STAGES}))
    result = run_lifecycle(recipe, tmp_path / "out", "--jobs", jobs)
    assert result.returncode == 2 and f"jobs: '{jobs}' is not a positive integer" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_fault_in_a_config_names_the_users_recipe(tmp_path, monkeypatch):
    monkeypatch.setitem(COMMANDS, "toy", ("tests.launch.toy", "STAGE", "count"))
    recipe = {"stages": {"one": {"command": "toy", "config": {"rate": "x"}}}}
    for overrides, place in ({}, "config"), ({"one": {"seed": "2"}}, "config and command line"):
        (stage,) = plan_stages(recipe, "life.yaml", tmp_path, overrides)
        words = arguments_of(stage)[1:]
        with monkeypatch.context() as patch:
            for name, value in environment_of(stage, 1).items():
                patch.setenv(name, value)
            with pytest.raises(UserError, match=f"^life.yaml: stages.one.{place}: rate: 'x' is not a number"):
                load_config(ToyConfig, words)


@pytest.mark.parametrize(
    ("second", "words", "message"),
    [
        ({"updats": 3}, [], r"^\S*life.yaml: stages.b.config: unknown key 'updats'; did you mean 'updates'"),
        ({}, ["--b.updats", "3"], r"stages.b.config and command line: unknown key 'updats'; did you mean 'updates'"),
        ({"batch_size": "many"}, [], r"stages.b.config: batch_size: 'many' is not an integer"),
        ({"batch_size": 0}, [], r"stages.b.config: batch_size: 0 is below 1"),
        ({}, ["--b.batch_size", "--jobs", "2"], r"command line: batch_size: needs a value"),
    ],
)
def test_a_fault_in_a_later_stage_is_told_before_the_first_one_starts(tmp_path, second, words, message):
    config = {"policy": "@a", "reward": "@a", "prompts": "@a/completions.jsonl", **second}
    stages = {"a": {"command": "generate", "config": {"model": "x", "prompts": "p"}}}
    stages["b"] = {"command": "ppo", "config": config}
    (tmp_path / "life.yaml").write_text(json.dumps({"stages": stages}))
    with pytest.raises(UserError, match=message):
        lifecycle.main([str(tmp_path / "life.yaml"), "--output_dir", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_a_config_with_which_a_stage_was_complete_is_not_checked_again(tmp_path):
    (stage,) = plan_stages({"stages": {"a": {"command": "ppo", "config": {"updats": 3}}}}, "r", tmp_path, {})
    write_json(tmp_path / "a" / ".recipe.json", {"fingerprint": "of another entry"})
    with pytest.raises(UserError, match="unknown key 'updats'"):
        check_configs([stage])
    write_json(tmp_path / "a" / ".recipe.json", {"fingerprint": stage.fingerprint})
    check_configs([stage])


@pytest.mark.parametrize("path", sorted((ROOT / "launch" / "recipes").glob("demo*.yaml")), ids=lambda p: p.stem)
def test_the_stages_of_a_recipe_that_comes_with_alignkit_pass(path, tmp_path):
    check_configs(plan_stages(read_yaml(path), path.name, tmp_path, {}))


def test_configs_of_stages_that_train_are_checked_without_torch():
    code = "import sys; from launch.cli import *; "
    code += "[config_class(c) for c in COMMANDS if c not in NOT_STAGES and not c.startswith('evaluate')]; "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_failing_stage_ends_the_lifecycle_with_its_code(tmp_path):
    completions(tmp_path / "c.jsonl", 1, reference="sample {}")
    recipe = tmp_path / "life.yaml"
    entry = {"command": "preferences build", "config": {"completions": [str(tmp_path / "c.jsonl")]}}
    recipe.write_text(json.dumps({"stages": {"one": entry, "two": entry}}))
    result = alignkit("run", recipe, "--output_dir", tmp_path / "out")  # as a shell starts it
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(
        "[1/2] one: failed: completions: no row has a reference that differs"
    )
    assert result.stderr.count("no row has") == 1 and "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "two").exists()
    plan = plan_stages({"stages": {"one": entry}}, "r", tmp_path / "out", {})
    assert not is_up_to_date(plan[0])
