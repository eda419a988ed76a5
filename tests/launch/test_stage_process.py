"""The processes of a lifecycle's stages: what their server imports, and how signals reach them."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import stage_process
from launch.cli import COMMANDS, NOT_STAGES, find_stage
from launch.files import read_json
from launch.plan import plan_stages
from tests.commands import run_command, start_command
from tests.launch.toy import LAUNCHER
from tests.support import ROOT, environment, last_words, start


def save_toys(tmp_path, launcher="", **config):
    """The recipe of a lifecycle of two toys, the second after the first."""
    config = {"steps": 6, "pause": 0.5, **config}
    recipe = tmp_path / "life.yaml"
    stages = {
        "one": {"command": "toy", "config": config, "launcher": launcher},
        "two": {"command": "toy", "config": {"source": "@one"}},
    }
    recipe.write_text(json.dumps({"stages": stages}))
    return recipe


def start_toys(tmp_path, launcher="", **config):
    """Such a lifecycle, its first toy at work."""
    recipe = save_toys(tmp_path, launcher, **config)
    command = ["tests.commands:toys", [recipe, "--output_dir", tmp_path / "out"]]
    return start_command(*command, tmp_path / "out" / "one" / "metrics.jsonl", 2), command


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [(signal.SIGTERM, False, 75), (signal.SIGUSR1, False, 75), (signal.SIGINT, False, 130), (signal.SIGINT, True, 130)],
)
def test_a_signal_stops_the_stages_that_run_and_the_same_command_resumes(tmp_path, number, group, code):
    """Ctrl-C on a terminal goes to the whole group, `kill` and schedulers to one process."""
    process, command = start_toys(tmp_path)
    os.killpg(process.pid, number) if group else process.send_signal(number)
    said = last_words(process)
    assert process.returncode == code, said
    assert "stopped after step" in said and "stopped as asked" in said and "[2/2]" not in said
    assert "Traceback" not in said
    if number == signal.SIGTERM or group:
        again = run_command(command[0], *command[1])
        assert again.returncode == 0, again.stderr
        assert "resuming after step" in again.stderr and "two: done in" in again.stderr
        assert again.stderr.count("done in") == 2  # the stages leave it to the lifecycle


def test_an_interrupt_while_the_libraries_are_imported_is_no_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.launch.toy_run",
        str(save_toys(tmp_path)),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    process = start(command, tmp_path / "none", 0)
    assert "one: alignkit toy" in process.stderr.readline()  # the server is being started
    os.killpg(process.pid, signal.SIGINT)
    said = last_words(process)
    assert process.returncode == 130 and "Ctrl-C again ends everything" in said, said
    assert said.splitlines()[-1] == "alignkit: stopped as asked; run the same command again to resume", said


def test_an_interrupt_at_the_very_start_of_the_server_is_not_lost(monkeypatch):
    came = []
    monkeypatch.setattr(stage_process.forkserver, "ensure_running", lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, lambda *_: came.append(signal.getsignal(signal.SIGINT)))
    try:
        ours = signal.getsignal(signal.SIGINT)
        stage_process._server([])
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [ours] and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_the_server_is_told_what_its_stages_need_once(tmp_path, monkeypatch):
    stages = {name: {"command": "generate", "config": {"prompts": "p"}} for name in "ab"}
    stages["c"] = {"command": "sft", "launcher": LAUNCHER}  # starts Python anew
    stages["d"] = {"command": "report"}
    told = []
    monkeypatch.setattr(
        stage_process.forkserver, "ensure_running", lambda: told.append(os.environ[stage_process.SERVER_MODULES])
    )
    stage_process._server(plan_stages({"stages": stages}, "r.yaml", tmp_path, {}))
    assert told == ["launch.runtime,alignment.generate.stage,evaluation.suites.report_run"]
    assert stage_process.SERVER_MODULES not in os.environ


def test_a_module_that_the_server_cannot_import_is_left_to_its_stage():
    code = (
        "import launch.fork_server, os, sys; print('data.order' in sys.modules, 'ALIGNKIT_SERVER_MODULES' in os.environ, "
        "os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'])"
    )
    told = environment(ALIGNKIT_SERVER_MODULES="no_such_module,tests.launch.broken_module,data.order")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=told, capture_output=True, text=True)
    assert done.stdout == "True False 1\n", done.stderr


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in NOT_STAGES])
def test_the_body_of_every_stage_has_its_run(command):
    assert callable(importlib.import_module(find_stage(command).body).run)


def test_a_second_interrupt_ends_a_lifecycle_and_its_stages_at_once(tmp_path):
    process, _ = start_toys(tmp_path, long_step=2)
    worker = read_json(tmp_path / "out" / "one" / ".watchdog" / "heartbeat-0.json")["pid"]
    os.killpg(process.pid, signal.SIGINT)
    while "Ctrl-C again" not in process.stderr.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    said = last_words(process, 40)  # less than the step takes
    assert process.returncode == -signal.SIGINT, said
    while Path(f"/proc/{worker}").exists():  # killed when its parent died: in a moment
        time.sleep(0.05)


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_ranks_of_a_launched_stage(tmp_path, number):
    process, _ = start_toys(tmp_path, launcher=LAUNCHER)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    said = last_words(process)
    assert process.returncode == (130 if number == signal.SIGINT else 75), said
    assert "stopped after step" in said and "SignalException" not in said  # the launcher gives its ranks half a minute
    assert len(list((tmp_path / "out" / "one" / "checkpoints").glob("step-*"))) == 1
