"""The recipes that come with alignkit: each is valid for the command that it names in its head."""

import importlib
import shlex
from pathlib import Path

import pytest

from launch.cli import COMMANDS, NOT_STAGES, find_command
from launch.config import build, find_recipe, load_config, read_yaml
from launch.plan import plan_stages
from tests.support import ROOT
from tests.test_demo import SMALL

RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))


def config_class(command):
    return importlib.import_module(COMMANDS[command][0]).STAGE.config


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem != "demo"], ids=lambda p: p.stem)
def test_a_recipe_is_valid_for_the_command_in_its_head(path):
    lines = [line[2:] for line in path.read_text().splitlines() if line.startswith("# alignkit ")]
    assert len(lines) == 1, "one line `# alignkit COMMAND --config NAME ...` at the top"
    command, words = find_command(shlex.split(lines[0])[1:])
    assert words[:2] == ["--config", path.stem] and "--output_dir" in words
    load_config(config_class(command), words)


def test_every_stage_has_a_recipe():
    heads = [p.read_text() for p in RECIPES]
    missing = [
        c for c in COMMANDS if c not in (*NOT_STAGES, "report") and not any(f"# alignkit {c} " in h for h in heads)
    ]
    assert missing == []


def test_the_stages_of_the_demo_are_valid(tmp_path):
    overrides = {}
    for key, value in SMALL.items():
        stage, _, field = key.partition(".")
        overrides.setdefault(stage, {})[field] = str(value)
    plan = plan_stages(read_yaml(find_recipe("demo")), "demo", Path(tmp_path), overrides)
    for stage in plan:
        build(config_class(stage.command), stage.config | {"output_dir": str(stage.folder)}, f"demo: {stage.name}")
