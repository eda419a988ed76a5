"""`--overwrite` is killed before each of its steps on the disk; the next start goes on, and nothing is lost."""

import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from launch.errors import UserError
from launch.files import is_empty_folder, lock_folder, write_json
from launch.run_folder import MARKS, MOVED, prepare_folder, return_previous
from launch.stage import Stage, describe_run, run_stage
from tests.launch.toy import STAGE, ToyConfig

TOUCHES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def killed(action, step):
    """Do something in a process of its own and SIGKILL it before its `step`-th change on the disk; False when it has fewer."""
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
        sys.addaudithook(watch)
        action()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def begin(config):
    """A run up to its run.json."""
    run = describe_run(STAGE, config)
    with lock_folder(Path(config.output_dir)):
        prepare_folder(config, run)
        write_json(Path(config.output_dir) / "run.json", {**run, "started": 0.0, "choices": {}})


def begin_and_fail(config):
    """A run that ends by a mistake of the user before it has written anything."""
    with lock_folder(Path(config.output_dir)):
        prepare_folder(config, describe_run(STAGE, config))
        return_previous(Path(config.output_dir))


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def make_run(folder, complete, rate):
    """A run of the toy; one that was interrupted has checkpoints to lose."""
    run_stage(STAGE, ToyConfig(output_dir=str(folder), checkpoint_steps=3, rate=rate))
    (folder / "weights.txt").write_text("of a name behind that of run.json")
    for name in () if complete else ("provenance.json", "result.txt", "README.md"):
        (folder / name).unlink()
    return content(folder)


@pytest.mark.parametrize(
    ("complete", "older_complete"), [(True, True), (True, False), (False, True), (False, False)], ids=str
)
def test_a_kill_at_any_point_of_an_overwrite_loses_nothing(tmp_path, complete, older_complete):
    made = tmp_path / "made"
    before, older = make_run(made / "out", complete, 0.5), make_run(made / "out.previous", older_complete, 0.75)
    step, goes_on = 0, True
    while goes_on:
        step += 1
        out = shutil.copytree(made, tmp_path / str(step)) / "out"
        changed = ToyConfig(output_dir=str(out), rate=0.25, overwrite=True, checkpoint_steps=3)
        goes_on = killed(lambda config=changed: begin(config), step)
        assert run_stage(STAGE, changed)["summary"] == {"total": 5.25}, step
        assert content(out.parent / "out.previous") == (before if complete or not older_complete else older), step
        assert not [p.name for p in out.iterdir() if p.name in MARKS[1:]]
    assert step > 9  # one for each entry


def test_a_complete_run_comes_back_when_the_new_one_had_nothing_to_write(tmp_path):
    before = make_run(tmp_path / "made" / "out", True, 0.5)
    step, goes_on = 0, True
    while goes_on:
        step += 1
        out = shutil.copytree(tmp_path / "made", tmp_path / str(step)) / "out"
        changed = ToyConfig(output_dir=str(out), rate=0.25, overwrite=True)
        goes_on = killed(lambda config=changed: begin_and_fail(config), step)
        begin_and_fail(changed)
        assert content(out) == before, step
        assert [p.name for p in out.parent.iterdir()] == ["out"], step
    assert step > 16  # one for each entry, to and fro


def refuse(config, job):
    (job.output_dir / "checkpoints").mkdir(exist_ok=True)
    raise UserError("source: line 2 is cut; restore it")


def test_a_mistake_in_the_data_leaves_the_run_that_was_there(tmp_path):
    out = tmp_path / "out"
    before = make_run(out, True, 0.5)
    for _ in range(2):
        with pytest.raises(UserError, match="line 2 is cut"):
            run_stage(Stage("toy", ToyConfig, refuse), ToyConfig(output_dir=str(out), rate=0.25, overwrite=True))
        assert content(out) == before and not (tmp_path / "out.previous").exists()
    run_stage(STAGE, ToyConfig(output_dir=str(out), rate=0.25, overwrite=True))
    assert content(tmp_path / "out.previous") == before
    assert not (out / MOVED).exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_no_run_made_is_never_removed(tmp_path, kind):
    out, previous = tmp_path / "out", tmp_path / "out.previous"
    before = make_run(out, True, 0.5)
    mine = tmp_path / "mine" if kind == "link" else previous
    if kind == "file":
        mine.write_text("mine")
    else:
        mine.mkdir()
        (mine / "thesis.tex").write_text("mine")
    if kind == "link":
        previous.symlink_to(mine)
    with pytest.raises(UserError, match=r"out\.previous, where .* is not of an alignkit run; rename it or choose"):
        run_stage(STAGE, ToyConfig(output_dir=str(out), rate=0.25, overwrite=True))
    assert content(out) == before
    assert (mine if kind == "file" else mine / "thesis.tex").read_text() == "mine"


def test_a_folder_in_which_nothing_was_written_is_removed_again(tmp_path):
    for folder in (tmp_path / "new", tmp_path / "old"):
        (tmp_path / "old").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="line 2 is cut"):
            run_stage(Stage("toy", ToyConfig, refuse), ToyConfig(output_dir=str(folder)))
    assert [p.name for p in tmp_path.iterdir()] == ["old"]  # the user's own stays
    assert is_empty_folder(tmp_path / "old")


def test_a_lock_that_its_holder_removed_is_made_anew(tmp_path, monkeypatch):
    out, removed = tmp_path / "out", []
    lock = fcntl.flock

    def flock(stream, how):
        if not removed:  # between opening and locking, the holder removes what it made
            removed.append((out / ".lock").unlink())
            out.rmdir()
        lock(stream, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock_folder(out):
        assert removed and (out / ".lock").exists()


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


def test_a_start_clears_what_a_kill_left_of_a_file_that_was_being_written(tmp_path):
    folder = tmp_path / "out"
    make_run(folder, False, 0.5)
    inner = folder / "inner"
    run_stage(STAGE, ToyConfig(output_dir=str(inner)))
    name = ".samples.jsonl.0123abcd.tmp"
    (folder / "tasks" / "one").mkdir(parents=True)
    for place in (folder, folder / "tasks" / "one", inner):
        (place / name).write_text("half a li")
    (folder / ".notes.tmp").write_text("of the user")
    run_stage(STAGE, ToyConfig(output_dir=str(folder), checkpoint_steps=3, rate=0.5))
    assert [path for path in folder.rglob(name)] == [inner / name]  # another run's, which may be at work
    assert (folder / ".notes.tmp").exists()
