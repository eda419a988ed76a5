"""`--overwrite` is killed before each of its steps on the disk; the next start goes on, and nothing is lost."""

import os
import signal
import sys
from pathlib import Path

import pytest

from launch.files import lock_folder, write_json
from launch.run_folder import prepare_folder
from launch.stage import describe_run, run_stage
from tests.launch.toy import STAGE, ToyConfig

TOUCHES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def started_and_killed(config, step):
    """Begin a run in a process of its own, up to run.json, and SIGKILL it before its `step`-th change; False when it has fewer."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def watch(event, arguments):
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
            if event in TOUCHES or writes:
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        run = describe_run(STAGE, config)
        sys.addaudithook(watch)
        with lock_folder(Path(config.output_dir)):
            prepare_folder(config, run)
            write_json(Path(config.output_dir) / "run.json", {**run, "started": 0.0, "choices": {}})
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("complete", [True, False])
def test_a_kill_at_any_point_of_an_overwrite_loses_nothing(tmp_path, complete):
    step, killed = 0, True
    while killed:
        step += 1
        out = tmp_path / str(step) / "out"
        (out.parent / "out.previous" / "deep").mkdir(parents=True)  # of a generation before, which is to go
        (out.parent / "out.previous" / "deep" / "older.txt").write_text("x")
        run_stage(STAGE, ToyConfig(output_dir=str(out), checkpoint_steps=3))
        if not complete:  # interrupted: there are checkpoints to lose
            for name in ("provenance.json", "result.txt", "README.md"):
                (out / name).unlink()
        before = content(out)
        changed = ToyConfig(output_dir=str(out), rate=0.25, overwrite=True, checkpoint_steps=3)
        killed = started_and_killed(changed, step)
        assert run_stage(STAGE, changed)["summary"] == {"total": 5.25}, step
        assert content(out.parent / "out.previous") == before, step
        assert not (out / ".moving").exists()
    assert step > 12  # one for each entry, besides those of the old generation and of run.json


def test_a_move_that_was_cut_short_is_finished_without_overwrite_too(tmp_path):
    out = tmp_path / "out"
    config = ToyConfig(output_dir=str(out))
    run_stage(STAGE, config)
    before = content(out)
    (out / ".moving").touch()
    (tmp_path / "out.previous").mkdir()
    os.rename(out / "result.txt", tmp_path / "out.previous" / "result.txt")
    run_stage(STAGE, config)
    assert content(tmp_path / "out.previous") == before
    assert (out / "result.txt").read_bytes() == before[Path("result.txt")]
