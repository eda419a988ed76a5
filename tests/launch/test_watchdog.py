"""A job that is stuck ends, whatever else is broken; and nothing outlives its parent."""

import json
import os
import subprocess
import sys
import threading

from launch.watchdog import Watchdog
from tests.support import ROOT, environment


def run(code, *words):
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)


STUCK = """
import shutil, sys, time
from pathlib import Path
from launch.watchdog import Watchdog
folder = Path(sys.argv[1])
Watchdog(folder, 0, 0.4).start().beat(0)
shutil.rmtree(folder)
folder.write_text("nothing can be written below a file, nor on a full disk")
time.sleep(20)
"""


def test_a_stuck_job_ends_where_the_stacks_cannot_be_written(tmp_path):
    result = run(STUCK, tmp_path / "watchdog")
    assert result.returncode == 75, result.stderr
    assert "the job is stuck; stacks are above" in result.stderr and "Thread" in result.stderr


def test_heartbeats_of_a_larger_world_before_are_cleared_and_stacks_kept(tmp_path):
    beat = json.dumps({"rank": 7, "step": 0, "time": 0.0, "pid": 1})
    for name in ("heartbeat-7.json", "hang-7.txt"):
        (tmp_path / name).write_text(beat)
    first = Watchdog(tmp_path, 0, 60).start()
    Watchdog(tmp_path, 1, 60).start().stop()
    first.stop()
    assert {p.name for p in tmp_path.iterdir()} == {"heartbeat-0.json", "heartbeat-1.json", "hang-7.txt"}
    assert first._suspects() == " (all ranks stopped at the same step)"


def suspects(folder, *beats, written=None):
    """What a rank says that fires, with a heartbeat period of 1 s, of heartbeats (step, time of the last beat) by rank."""
    for rank, (step, when) in enumerate(beats):
        path = folder / f"heartbeat-{rank}.json"
        path.write_text(json.dumps({"rank": rank, "step": step, "time": when, "pid": 1}))
        stamp = 5000.0 if written is None else written[rank]
        os.utime(path, (stamp, stamp))
    return Watchdog(folder, 1, 60)._suspects()


def test_of_ranks_at_one_step_the_one_that_fell_silent_long_before_the_others_is_named(tmp_path):
    assert suspects(tmp_path, (5, 1030.0), (5, 1031.0), (5, 1000.0)) == " (first to fall silent: rank 2 at step 5)"


def test_a_rank_that_is_a_step_behind_is_named_though_it_fell_silent_last(tmp_path):
    assert suspects(tmp_path, (5, 1000.0), (4, 1030.0), (5, 1001.0)) == " (first to fall silent: rank 1 at step 4)"


def test_two_ranks_that_are_behind_are_both_named(tmp_path):
    assert suspects(tmp_path, (4, 1000.0), (5, 1000.0), (4, 1000.0)) == " (first to fall silent: rank 0, 2 at step 4)"


def test_ranks_that_fell_silent_within_a_few_heartbeats_of_one_another_stopped_together(tmp_path):
    for first, later in ((1000.0, 0.0), (1000.4, 0.3), (1000.9, 0.3), (1000.0, 3.0)):  # whatever a time is rounded to
        assert suspects(tmp_path, (5, first), (5, first + later)) == " (all ranks stopped at the same step)"


def test_a_rank_that_no_longer_writes_is_named_before_one_that_is_behind(tmp_path):
    beats, written = [(4, 1000.0), (5, 1030.0), (5, 1030.0)], [5000.0, 5000.0, 4980.0]
    expected = " (no sign of life from rank 2: stopped, or its machine is gone)"
    assert suspects(tmp_path, *beats, written=written) == expected


def test_a_torn_heartbeat_and_a_single_one_name_nobody(tmp_path):
    assert suspects(tmp_path, (5, 1000.0)) == ""
    (tmp_path / "heartbeat-1.json").write_text('{"rank": 1, "st')
    assert Watchdog(tmp_path, 1, 60)._suspects() == ""


def test_no_heartbeat_comes_after_the_end(tmp_path, monkeypatch):
    """A late one would bring the folder back, and a run that was forgotten would look like one that began."""
    folder = tmp_path / ".watchdog"
    writing, written = threading.Event(), threading.Event()

    def write_slowly(path, text):
        writing.set()
        assert not written.wait(0.3)
        open(path, "w").close()
        written.set()

    ours, other = Watchdog(folder, 0, 0.04), Watchdog(folder, 1, 60)
    ours.start()
    monkeypatch.setattr("pathlib.Path.write_text", write_slowly)
    assert writing.wait(10)
    ours.stop()
    assert written.is_set()
    monkeypatch.undo()
    ours.remove()
    other._write_heartbeat()
    assert not list(tmp_path.iterdir())


def test_a_heartbeat_in_the_middle_of_the_removal_does_not_keep_the_folder(tmp_path, monkeypatch):
    ours, other = Watchdog(tmp_path / ".watchdog", 0, 60), Watchdog(tmp_path / ".watchdog", 1, 60)
    rmdir = os.rmdir

    def rmdir_late(path, **options):
        other._write_heartbeat()
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", rmdir_late)
    ours.remove()
    assert not list(tmp_path.iterdir())


ORPHAN = """
import os
from launch.processes import die_with_parent
parents = iter([4, 1])
os.getppid = lambda: next(parents)
die_with_parent()
print("alive")
"""


def test_a_parent_that_died_before_the_kernel_was_asked_is_noticed():
    result = run(ORPHAN)
    assert result.returncode == -9 and result.stdout == ""
    assert run(ORPHAN.replace("[4, 1]", "[4, 4]")).stdout == "alive\n"
