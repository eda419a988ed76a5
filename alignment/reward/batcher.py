"""Requests that come together are scored together: one thread runs the model, on all that wait for it.

While the model runs, requests gather; the next pass takes them all. So one caller waits for nothing but its own pass, and
many callers share passes. A row's reward does not depend on its neighbours (see evaluation/scoring.py).
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignment.reward.model import RewardModel
from data.records import Turns
from evaluation.scoring import check_context, score_ids


class Busy(Exception):
    """More rows wait than the queue may hold, or it is closing."""


@dataclass
class Job:
    """One request: its rows, then its rewards or why there are none."""

    prompts: Sequence[Turns]
    completions: Sequence[Turns]
    finished: Sequence[bool]
    ids: list[list[int]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Scores rows of many threads with one model. At most `most_waiting` rows wait, unless a single request has more."""

    def __init__(self, model: RewardModel, batch_tokens: int = 8192, most_waiting: int = 4096) -> None:
        self.model, self.batch_tokens, self.most_waiting = model, batch_tokens, most_waiting
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def score(self, prompts: Sequence[Turns], completions: Sequence[Turns], finished: Sequence[bool]) -> list[float]:
        """Rewards of the rows, once their turn has come. Busy when too many wait; UserError for rows that do not fit."""
        job = Job(prompts, completions, finished)
        with self._changed:
            ahead = sum(len(other.prompts) for other in self._waiting)
            if self._closed or (ahead and ahead + len(prompts) > self.most_waiting):
                raise Busy
            self._waiting.append(job)
            self._changed.notify()
        job.done.wait()
        if job.error:
            raise job.error
        return job.rewards

    def close(self) -> None:
        """Score what waits, take nothing more, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            for job in jobs:
                self._encode(job)
            self._score([job for job in jobs if not job.error])
            for job in jobs:
                job.done.set()

    def _take(self) -> list[Job]:
        """All that waits, as soon as something does; nothing when the batcher is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            jobs = list(self._waiting)
            self._waiting.clear()
            return jobs

    def _encode(self, job: Job) -> None:
        """Token ids of a request. Here, not in the request's thread: tokenizers are not made for several."""
        try:
            job.ids = self.model.encode(job.prompts, job.completions, job.finished)
            check_context(self.model.model, [len(ids) for ids in job.ids], "row")
        except Exception as error:
            job.error = error

    def _score(self, jobs: list[Job]) -> None:
        """One pass over the rows of all requests. A failure is of the model, and so of all of them."""
        try:
            rewards = score_ids(self.model.model, [ids for job in jobs for ids in job.ids], self.batch_tokens).tolist()
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            for job in jobs:
                job.error = RuntimeError(str(error))
            return
        for job in jobs:
            job.rewards, rewards = rewards[: len(job.ids)], rewards[len(job.ids) :]
