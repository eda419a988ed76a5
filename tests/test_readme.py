"""What the README shows is executed: its commands on stand-ins for the demo's artefacts, its Python as it stands."""

import re
import shlex
import subprocess
import sys

import pytest

from launch.cli import COMMANDS
from tests.commands import run_command
from tests.support import ROOT, environment, save_policy, save_reward

TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


COMMANDS_SHOWN = [
    line
    for block in blocks("bash")
    for line in block.splitlines()
    if line and not line.startswith(("make", "source", "#"))
]
(ACTIVATION,) = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("source")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like the checkout after `make demo`, with tiny models."""
    root = tmp_path_factory.mktemp("readme")
    save_policy(root / "demo" / "sft", max_position_embeddings=256)
    save_reward(root / "demo" / "reward", max_position_embeddings=256)
    (root / "launch").symlink_to(ROOT / "launch")
    (root / ".venv").symlink_to(sys.prefix)
    return root


@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(COMMANDS_SHOWN)))
def test_commands(place, number):
    """In the order of the README: later ones use what earlier ones made."""
    assert shlex.split(COMMANDS_SHOWN[number])[0] in ("alignkit", "accelerate")
    command = ["bash", "-c", f"{ACTIVATION} && exec {COMMANDS_SHOWN[number]}"]
    env = environment(DS_ACCELERATOR="cpu", ACCELERATE_NUM="", PATH="/usr/bin:/bin")
    result = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]


def test_python(place):
    """Each block in a process of its own."""
    for block in blocks("python"):
        result = run_command("tests.test_readme:execute", block, cwd=place)
        assert result.returncode == 0, result.stderr[-2000:]
        float(result.stdout.strip().strip("[]").split()[-1])


def execute(words):
    exec(words[0], {"__name__": "__main__"})


def test_every_command_is_in_the_table():
    for name in COMMANDS:
        group, _, rest = name.partition(" ")
        row = next(line for line in TEXT.splitlines() if line.startswith("|") and f"`alignkit {group}" in line)
        assert not rest or f"`{rest}`" in row or f"{group} {rest}`" in row


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / link).exists(), link
