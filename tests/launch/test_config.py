"""Typed recipes: every fault names the key, the file and what to do."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from launch.config import (
    artefact,
    artefact_paths,
    describe,
    find_recipe,
    identity_dict,
    load_config,
    operational,
    parse_overrides,
    python_function,
    read_yaml,
)
from launch.errors import UserError


@dataclass
class Inner:
    depth: int = 2
    """How deep."""


@dataclass
class Example:
    learning_rate: float = 1e-3
    """Step size."""
    steps: int = 10
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)
    model: str = artefact("")
    output_dir: str = operational("")

    def check(self):
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps} is below 1; give a positive integer")
        if self.limit and self.steps > self.limit:
            raise ValueError(f"steps: {self.steps} is above limit {self.limit}")
        if self.kind == "b" and not self.names:
            raise ValueError("names is missing; add --names a,b")


def recipe(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return str(path)


def test_file_and_overrides(tmp_path):
    path = recipe(tmp_path, "learning_rate: 3e-4\nsteps: 5\nnames: [x, y]\nweights: {a: 1}\ninner: {depth: 3}\n")
    config = load_config(Example, ["--config", path, "--steps", "7", "--inner.depth=9", "--flag", "--limit", "null"])
    assert config == Example(3e-4, 7, True, "a", ["x", "y"], {"a": 1.0}, None, Inner(9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnin_rate: 1", r"r\.yaml: unknown key 'learnin_rate'; did you mean 'learning_rate'"),
        ("learning_rate: abc", r"r\.yaml: learning_rate: 'abc' is not a number"),
        ("steps: 1.5", r"r\.yaml: steps: 1\.5 is not an integer"),
        ("steps: true", r"steps: True is not an integer"),
        ("flag: 1", r"flag: 1 is not true or false"),
        ("kind: c", r"kind: 'c' is not one of 'a', 'b'"),
        ("names: {a: 1}", r"names: .* is not list of text"),
        ("inner: {dept: 1}", r"unknown key 'inner\.dept'; did you mean 'depth'"),
        ("inner: {depth: x}", r"inner\.depth: 'x' is not an integer"),
        ("limit: x", r"limit: 'x' is not an integer or null"),
        ("steps: 0", r"r\.yaml: steps: 0 is below 1"),
        ("steps: 1\nsteps: 2", r"^[^:]*r\.yaml: line 2: key 'steps' is given twice; keep one$"),
        ("steps: [1", r"not valid YAML"),
        ("", r"the recipe is empty"),
        ("- a", r"a recipe is a mapping"),
        ("learning_rate: .inf", r"learning_rate: inf is not a number"),
        (f"learning_rate: 1{'0' * 400}", r"learning_rate: 1000* is not a number"),
        ("? [a]\n: 1", r"line 1: a key is text, not \['a'\]"),
        ("steps: 2024-99-99", r"r\.yaml: not valid YAML \(month must be in 1\.\.12\)"),
        (f"steps: {'1' * 6000}", r"not valid YAML \(Exceeds the limit"),
        ("names: " + "[" * 5000, r"not valid YAML \(brackets nest too deep\)"),
        ("steps: 1\0", r"^[^\n]*not valid YAML[^\n]*$"),
        ("x: !!python/object/apply:os.system [ls]", r"not valid YAML"),
    ],
)
def test_faults_in_a_recipe(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_config(Example, ["--config", recipe(tmp_path, text)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rate", "abc"], r"command line: --learning_rate: 'abc' is not a number"),
        (["--learning_rate", "--steps", "1"], r"^command line: --learning_rate: needs a value; give a number"),
        (["--steps", "1", "--names"], r"^command line: --names: needs a value; give list of text"),
        (["--learning_rat", "1"], r"unknown key '--learning_rat'; did you mean 'learning_rate'"),
        (["steps", "1"], r"'steps' is not an option"),
        (["--steps", "1", "--steps", "2"], r"--steps is given twice"),
        (["--config", "nowhere/x.yaml"], r"nowhere/x\.yaml: no such recipe"),
        (["--config", "demoo"], r"demoo: no such recipe"),
        (["--config"], r"^command line: --config: needs a value"),
        (
            ["--names", "[" * 5000],
            r"^command line: --names: '\[{80}\.\.\.' is not valid YAML \(brackets nest too deep\)",
        ),
        (["--learning_rate", "inf"], r"--learning_rate: 'inf' is not a number"),
        (["--learning_rate", "nan"], r"--learning_rate: 'nan' is not a number"),
        (["--learning_rate", "1e999"], r"--learning_rate: '1e999' is not a number"),
        (["--steps", "inf"], r"--steps: 'inf' is not an integer"),
        (["--names", "[a"], r"command line: --names: '\[a' is not valid YAML"),
        (["--weights", "{a: ["], r"command line: --weights: '\{a: \[' is not valid YAML"),
        (["--inner", "2", "--inner.depth", "1"], r"--inner\.depth: 'inner' is given a value, too"),
        (["--inner.depth", "1", "--inner", "2"], r"--inner is given twice"),
    ],
)
def test_faults_on_the_command_line(words, message):
    with pytest.raises(UserError, match=message):
        load_config(Example, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], r"^command line: steps: 0 is below 1"),
        (["--inner.depth", "x"], r"^command line: --inner\.depth: 'x' is not an integer"),
        (["--inner.dept", "1"], r"^command line: unknown key '--inner\.dept'; did you mean 'depth'"),
        (["--weights.a", "x"], r"^command line: --weights\.a: 'x' is not a number"),
        (["--weights", "{b: x}"], r"^command line: --weights\.b: 'x' is not a number"),
        (["--inner", "3"], r"^command line: --inner: '3' is not Inner"),
        (["--limit", "3"], r"^.*r\.yaml and command line: steps: 5 is above limit 3"),
        (["--steps", "9", "--limit", "8"], r"^command line: steps: 9 is above limit 8"),
        (["--kind", "b"], r"^\S*r\.yaml: names is missing"),
    ],
)
def test_a_fault_of_the_command_line_is_not_blamed_on_the_recipe(tmp_path, words, message):
    path = recipe(tmp_path, "steps: 5\ninner: {depth: 1}\nweights: {a: 1}\n")
    with pytest.raises(UserError, match=message):
        load_config(Example, ["--config", path, *words])


def test_recipe_that_is_not_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00steps")
    with pytest.raises(UserError, match="UTF-8"):
        read_yaml(path)


def test_negative_numbers_and_lists_on_the_command_line():
    assert parse_overrides(["--a", "-1", "--b=x,y"]) == {"a": "-1", "b": "x,y"}
    assert load_config(Example, ["--names", "x,y"]).names == ["x", "y"]


def test_identity_leaves_out_operational_fields_and_help_shows_documentation():
    config = Example(model="m", output_dir="somewhere")
    assert "output_dir" not in identity_dict(config)
    assert artefact_paths(config) == {"model": "m"}
    text = describe(Example)
    assert "--learning_rate  (a number; default 0.001)" in text
    assert "--model  (text; empty unless given)" in text
    assert "Step size." in text


@dataclass(kw_only=True)
class Limit:
    """How far."""

    low: int = 1
    """Inclusive."""
    high: int = 2
    """Inclusive."""


@dataclass(kw_only=True)
class Grouped:
    """A config with groups."""

    first: Limit = field(default_factory=Limit)
    second: Limit = field(default_factory=Limit)
    """Limits of the second."""


def test_help_lists_the_fields_of_groups_and_says_nothing_twice():
    assert [line.strip() for line in describe(Grouped).splitlines()] == [
        "--first.*",
        "How far.",
        "--first.low  (an integer; default 1)",
        "Inclusive.",
        "--first.high  (an integer; default 2)",
        "--second.*",
        "Limits of the second.",
        "--second.low  (an integer; default 1)",
        "--second.high  (an integer; default 2)",
    ]


def test_a_folder_of_a_recipes_name_does_not_hide_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_recipe("demo").is_file()


@dataclass(kw_only=True)
class Source:
    model: str | None = artefact(None)
    members: list[str] = artefact([])
    function: str | None = python_function()
    weight: float = 1.0
    timeout: float = operational(1.0)

    def check(self):
        if not self.weight:
            raise ValueError("weight: 0 is nothing")


@dataclass
class Nested:
    sources: dict[str, Source] = field(default_factory=dict)
    listed: list[Source] = field(default_factory=list)
    one: Source = field(default_factory=Source)
    seed: int = 0


NESTED = "sources: {a: {model: m}, b: {members: [x, y], weight: 2}}\nlisted: [{function: 'f.py:g'}]\none: {model: n, timeout: 9}\n"


def test_inputs_are_found_at_any_depth(tmp_path):
    config = load_config(Nested, ["--config", recipe(tmp_path, NESTED), "--sources.a.weight", "3"])
    assert artefact_paths(config) == {
        "sources.a.model": "m",
        "sources.b.members[0]": "x",
        "sources.b.members[1]": "y",
        "listed[0].function": "python:f.py:g",
        "one.model": "n",
    }


def test_the_identity_keeps_what_decides_and_leaves_out_places_at_any_depth(tmp_path):
    config = load_config(Nested, ["--config", recipe(tmp_path, NESTED), "--sources.a.weight", "3"])
    unset = {"function": None, "members": []}
    assert identity_dict(config) == {
        "sources": {"a": {**unset, "weight": 3.0}, "b": {"model": None, "function": None, "weight": 2.0}},
        "listed": [{"model": None, "members": [], "weight": 1.0}],
        "one": {**unset, "weight": 1.0},
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: {a: {modle: m}}", r"r\.yaml: unknown key 'sources\.a\.modle'; did you mean 'model'"),
        ("sources: {a: {weight: x}}", r"r\.yaml: sources\.a\.weight: 'x' is not a number"),
        ("sources: {a: {weight: 0}}", r"r\.yaml: sources\.a\.weight: 0 is nothing"),
        ("sources: {a: m}", r"sources\.a: 'm' is not Source"),
        ("listed: [{weigth: 1}]", r"unknown key 'listed\[0\]\.weigth'; did you mean 'weight'"),
    ],
)
def test_faults_in_nested_configs(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_config(Nested, ["--config", recipe(tmp_path, text)])
