"""The demo's lifecycle at a small scale: every stage, a kill in the middle, and nothing to do the second time."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.config import find_recipe, read_yaml
from tests.commands import ForkedCommand
from tests.support import environment, last_words

SMALL = {
    "base.tokens": 20_000,
    "base.depth": 2,
    "base.width": 32,
    "sft.epochs": 0.05,
    "samples_a_plain.limit": 24,
    "samples_a_wild.limit": 24,
    "samples_b_plain.limit": 24,
    "samples_b_wild.limit": 24,
    "samples_eval_wild.limit": 32,
    "ppo.updates": 2,
    "ppo.batch_size": 16,
    "completions_base.limit": 32,
    "completions_sft.limit": 32,
    "completions_dpo.limit": 32,
    "completions_ppo.limit": 32,
    **{f"text_{name}.max_documents": 20 for name in ("base", "sft", "dpo", "ppo")},
    "vae.steps": 10,
    "gan.steps": 10,
    "diffusion.steps": 5,
    "images_vae.count": 100,
    "images_gan.count": 100,
    "images_diffusion.count": 100,
    "images_diffusion.diffusion_steps": 5,
}
STAGES = len(read_yaml(find_recipe("demo"))["stages"])
WORDS = [w for key, value in SMALL.items() for w in (f"--{key}", str(value))]


@pytest.mark.slow
@pytest.mark.distributed
def test_the_whole_lifecycle_survives_a_kill(tmp_path):
    words = ["demo", "--output_dir", "demo", *WORDS]  # as `make demo` says it: the folder then has the recipe's name
    process = ForkedCommand("tests.commands:served_lifecycle", words, tmp_path)
    command = [str(Path(sys.executable).parent / "alignkit"), "run", *words]
    place = {"cwd": tmp_path, "env": environment()}
    deadline = time.monotonic() + 400
    while not (tmp_path / "demo" / "sft" / "run.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    last_words(process)
    assert not (tmp_path / "demo" / "sft" / "provenance.json").exists()

    first = subprocess.run(command, **place, capture_output=True, text=True, timeout=1500)
    assert first.returncode == 0, first.stderr[-3000:]
    assert f"[1/{STAGES}] base: up to date" in first.stderr
    rows = json.loads((tmp_path / "demo" / "report" / "leaderboard.json").read_text())
    text = json.dumps(rows)
    assert all(f'"{name}"' in text for name in ("base", "sft", "dpo", "ppo", "vae", "gan", "diffusion"))
    page = (tmp_path / "demo" / "report" / "index.html").read_text()
    assert "Content-Security-Policy" in page and not re.search(r'(?:src|href)="https?://', page.split("<main")[0])
    assert str(tmp_path / "demo" / "report" / "index.html") in first.stdout
    assert re.search(r"Win rate .*\n", first.stdout) and " ppo " in first.stdout

    again = subprocess.run(command, **place, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0
    assert again.stderr.count("up to date") == STAGES
