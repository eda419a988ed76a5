"""A job that is stuck ends, whatever else is broken; and nothing outlives its parent."""

import json
import subprocess
import sys

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
