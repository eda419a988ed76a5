"""A wedged job ends with a reason instead of hanging: no step for too long, and every rank dumps its stacks and exits.

A rank that is killed is noticed by its peers in seconds (the connection resets); one that is stopped, cut off or
stuck in a collective is not, and DeepSpeed's groups wait 30 minutes. The watchdog is a thread of each rank.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from launch.errors import EXIT_RESUMABLE


class Watchdog:
    """Ends the process with code 75 when `beat` was not called for `limit_s` seconds (0 switches it off).

    The clock begins with the first `beat`: before the first step a stage reads and prepares its data, which has no steps
    and may take longer than any of them. `Job.resume`, which ends that, beats; so does each step.

    The thread of each rank writes a heartbeat file into `folder` about once a second, which tells of its last beat. A
    rank that fires names the ranks whose file is old: their process is stopped, or its machine is gone. Where there are
    none it names those whose last beat is the oldest.
    Rank 0 makes the folder and clears away the files of an earlier session, which may have had more ranks: the ranks
    meet before `start`. None makes the folder anew: what rank 0 removes at the end, a late heartbeat must not bring back.
    """

    def __init__(self, folder: Path, rank: int, limit_s: float) -> None:
        self.folder, self.rank, self.limit_s = folder, rank, limit_s
        self._last, self._step, self._counts = time.monotonic(), 0, False
        self._period = min(1.0, limit_s / 4)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if rank == 0:
            with contextlib.suppress(OSError):  # a full disk costs the heartbeats, not the job
                folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("heartbeat-*"):
                old.unlink(missing_ok=True)

    def start(self) -> Watchdog:
        if self.limit_s > 0:
            self._write_heartbeat()
            self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread; the heartbeat that it may be writing is written when this returns."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def remove(self) -> None:
        """Remove the folder, though other ranks may still write into it: it is renamed first, and theirs then go nowhere."""
        gone = self.folder.with_name(self.folder.name + ".gone")
        shutil.rmtree(gone, ignore_errors=True)  # what a kill in the middle of this left
        with contextlib.suppress(OSError):
            os.rename(self.folder, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def beat(self, step: int) -> None:
        """Tell that a step was made, or that the first one begins."""
        self._last, self._step, self._counts = time.monotonic(), step, True

    def alive(self) -> None:
        """Tell that this rank works, though no step was made: it waits for a service, or for a rank that does."""
        self._last = time.monotonic()

    def _write_heartbeat(self) -> None:
        path = self.folder / f"heartbeat-{self.rank}.json"
        aside = path.with_suffix(".tmp")
        last = time.time() - (time.monotonic() - self._last)
        beat = {"rank": self.rank, "step": self._step, "time": last, "pid": os.getpid()}
        with contextlib.suppress(OSError):  # a full disk, or a folder that rank 0 has removed
            aside.write_text(json.dumps(beat))
            os.replace(aside, path)

    def _watch(self) -> None:
        while not self._stop.wait(self._period):
            self._write_heartbeat()
            silent = time.monotonic() - self._last
            if self._counts and silent > self.limit_s:
                self._fire(silent)

    def _fire(self, silent: float) -> None:
        try:
            where = self._dump_stacks()
            print(
                f"alignkit: rank {self.rank}: no step for {silent:.0f} s after step {self._step}, the job is stuck{self._suspects()}; "
                f"stacks are {where}; run the same command again to resume",
                file=sys.stderr,
                flush=True,
            )
        finally:  # whatever fails above, a stuck job must end
            os._exit(EXIT_RESUMABLE)

    def _dump_stacks(self) -> str:
        """Write the stacks of all threads, to stderr where the disk does not take them; returns where they are."""
        stacks = self.folder / f"hang-{self.rank}.txt"
        try:
            with open(stacks, "w") as stream:
                faulthandler.dump_traceback(stream, all_threads=True)
            return f"in {stacks}"
        except OSError:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            return "above"

    def _suspects(self) -> str:
        """The ranks that are the cause: those that are not there, or that stopped before the others began to wait for them."""
        beats, written = [], {}
        for path in self.folder.glob("heartbeat-*.json"):
            try:
                beats.append(json.loads(path.read_text()))
                written[beats[-1]["rank"]] = path.stat().st_mtime  # of one file server: machines' clocks differ
            except (OSError, json.JSONDecodeError):
                continue
        if len(beats) < 2:
            return ""
        if frozen := [rank for rank, when in written.items() if max(written.values()) - when > 5 * self._period]:
            return (
                f" (no sign of life from rank {', '.join(map(str, sorted(frozen)))}: stopped, or its machine is gone)"
            )
        step = min(b["step"] for b in beats)
        behind = [b for b in beats if b["step"] == step]
        # ranks that wait for one another beat within moments: a period or two apart says nothing
        first = min(b["time"] for b in behind) + 5 * self._period
        guilty = [b["rank"] for b in behind if b["time"] <= first]
        if len(guilty) == len(beats):
            return " (all ranks stopped at the same step)"
        return f" (first to fall silent: rank {', '.join(map(str, sorted(guilty)))} at step {step})"
