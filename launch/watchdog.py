"""A wedged job ends with a reason instead of hanging: no step for too long, and every rank dumps its stacks and exits.

A rank that is killed is noticed by its peers in seconds (the connection resets); one that is stopped, cut off or
stuck in a collective is not, and DeepSpeed's groups wait 30 minutes. The watchdog is a thread of each rank.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path

from launch.errors import EXIT_WATCHDOG


class Watchdog:
    """Ends the process with code 75 when `beat` was not called for `limit_s` seconds (0 switches it off).

    Each rank leaves a heartbeat file in `folder`; a rank that fires names the ranks whose last beat is the oldest.
    """

    def __init__(self, folder: Path, rank: int, limit_s: float) -> None:
        self.folder, self.rank, self.limit_s = folder, rank, limit_s
        self._last, self._step, self._written = time.monotonic(), 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        if self.limit_s > 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_heartbeat()
            self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()

    def beat(self, step: int) -> None:
        """Tell that a step was made. The heartbeat file is written at most once a second."""
        self._last, self._step = time.monotonic(), step
        if self.limit_s > 0 and self._last - self._written > 1.0:
            self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        self._written = time.monotonic()
        path = self.folder / f"heartbeat-{self.rank}.json"
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps({"rank": self.rank, "step": self._step, "time": time.time(), "pid": os.getpid()}))
        os.replace(aside, path)

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.limit_s / 4)):
            silent = time.monotonic() - self._last
            if silent > self.limit_s:
                self._fire(silent)

    def _fire(self, silent: float) -> None:
        stacks = self.folder / f"hang-{self.rank}.txt"
        with open(stacks, "w") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
        print(
            f"alignkit: rank {self.rank}: no step for {silent:.0f} s after step {self._step}, the job is stuck{self._suspects()}; "
            f"stacks are in {stacks}; run the same command again to resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_WATCHDOG)

    def _suspects(self) -> str:
        """The ranks that fell silent first: they stopped beating before the others began to wait for them."""
        beats = []
        for path in self.folder.glob("heartbeat-*.json"):
            try:
                beats.append(json.loads(path.read_text()))
            except (OSError, json.JSONDecodeError):
                continue
        if len(beats) < 2:
            return ""
        first = min((b["step"], round(b["time"])) for b in beats)
        guilty = [b["rank"] for b in beats if (b["step"], round(b["time"])) == first]
        if len(guilty) == len(beats):
            return " (all ranks stopped at the same step)"
        return f" (first to fall silent: rank {', '.join(map(str, sorted(guilty)))} at step {first[0]})"
