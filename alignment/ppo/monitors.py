"""Monitors of a run's health: they read what is logged and say when a number has been beyond its threshold for too long.

A pure state machine over the global metrics: the same on every rank, on every run with the same seed, and after a
resume. What an alarm leads to is decided in guard.py. docs/ppo.md says what each monitor means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignment.ppo.options import Action, MonitorsOptions

SURE = 3.0
"""Standard errors by which a mean KL lies below 0 before it is called negative."""
COMPARED = ("policy/entropy", "rollout/length", "reward/score")
"""Metrics whose means over the first updates are kept; besides these, those that end in /disagreement."""


@dataclass(frozen=True)
class Seen:
    """What monitors read: an update's metrics, its evaluation's row, and the means over the first updates."""

    metrics: Mapping[str, float]
    row: Mapping[str, Any] | None
    first: Mapping[str, float]

    def ratio(self, name: str) -> float | None:
        """A metric over its mean in the first updates; None before there is one, or where that is not positive."""
        first = self.first.get(name, 0.0)
        return self.metrics[name] / first if name in self.metrics and first > 0 else None


@dataclass(frozen=True)
class Monitor:
    """What a monitor reads, and in which words; `below`: a fault lies below the threshold."""

    what: str
    read: Callable[[Seen], float | None]
    """None: there is no reading at this update."""
    below: bool = False
    lag: int = 1
    """A reading at update u speaks of the weights after update u - lag: rollouts are sampled before the update."""

    def is_fault(self, value: float, threshold: float) -> bool:
        return value < threshold if self.below else value > threshold


def _metric(name: str) -> Callable[[Seen], float | None]:
    return lambda seen: seen.metrics.get(name)


def _below_zero(seen: Seen) -> float | None:
    """How far below 0 the mean KL lies, less its error."""
    if "kl/k1" not in seen.metrics:
        return None
    return -seen.metrics["kl/k1"] - SURE * seen.metrics.get("kl/k1_stderr", 0.0)


def _length_drift(seen: Seen) -> float | None:
    ratio = seen.ratio("rollout/length")
    return max(ratio, 1 / ratio) if ratio else None


def _gold_fall(seen: Seen) -> float | None:
    """By how much the gold reward has clearly fallen since its peak; 0 while the training reward has not risen."""
    if seen.row is None or "gold_reward" not in seen.row:
        return None
    rising = seen.row.get("proxy_reward_since_peak", 0.0) > 0
    return -seen.row.get("gold_reward_since_peak_ci_high", 0.0) if rising else 0.0


def _disagreement(seen: Seen) -> float | None:
    """The largest ratio of an ensemble's disagreement to its first; 0 while the reward is not above its first."""
    ratios = [ratio for name in seen.first if name.endswith("/disagreement") and (ratio := seen.ratio(name))]
    if not ratios:
        return None
    return max(ratios) if seen.metrics["reward/score"] > seen.first["reward/score"] else 0.0


MONITORS: dict[str, Monitor] = {
    "kl": Monitor("the sequence KL to the reference, in nats,", _metric("kl/k1")),
    "kl_negative": Monitor("the distance of the mean KL below 0, three standard errors taken off,", _below_zero),
    "entropy": Monitor("the entropy over that of the first updates", lambda s: s.ratio("policy/entropy"), below=True),
    "length": Monitor("the factor between the length and that of the first updates", _length_drift),
    "explained_variance": Monitor("the explained variance", _metric("critic/explained_variance"), below=True),
    "clip_fraction": Monitor("the share of clipped tokens", _metric("policy/clip_fraction"), lag=0),
    "gradient": Monitor("the norm of the gradient", _metric("train/grad_norm"), below=True),
    "missing_eos": Monitor("the share of responses without EOS", _metric("rollout/missing_eos_rate")),
    "reward_hacking": Monitor("the fall of the gold reward under a rising training reward", _gold_fall, lag=0),
    "disagreement": Monitor("the ensemble's disagreement over that of the first updates", _disagreement),
}
"""By the names of their options."""


@dataclass(frozen=True)
class Alarm:
    """A monitor's number was beyond its threshold for as long as its patience."""

    monitor: str
    action: Action
    update: int
    since: int
    """The update after the last healthy reading."""
    sound: int
    """The update up to which the weights are known to be sound: of -1 not even those of the start."""
    value: float
    threshold: float

    @property
    def sentence(self) -> str:
        """Which monitor, value, threshold and update."""
        kind = MONITORS[self.monitor]
        started = f" since update {self.since}" if self.since < self.update else ""
        side = "below" if kind.below else "above"
        return f"update {self.update}: monitor {self.monitor}: {kind.what} is {self.value:.4g}, {side} {self.threshold:g}{started}"


@dataclass(frozen=True)
class Streak:
    """What is known of one monitor: its last reading, and how long it has been at fault."""

    update: int
    value: float
    faults: int = 0
    """Faulty readings in a row."""
    since: int = 0
    """Of a faulty one, the update after the last healthy reading."""

    @property
    def healthy_until(self) -> int:
        """The update of the last healthy reading."""
        return self.since - 1 if self.faults else self.update

    def next(self, update: int, value: float, is_fault: bool) -> Streak:
        """After one more reading."""
        if not is_fault:
            return Streak(update, value)
        return Streak(update, value, self.faults + 1, self.since if self.faults else self.update + 1)


@dataclass
class Monitors:
    """The state of all monitors; `state_dict` is JSON values."""

    options: MonitorsOptions
    rollbacks: int = 0
    """Roll-backs that were made."""
    told: list[dict[str, Any]] = field(default_factory=list)
    """Alarms so far, with what was done: the rows of alarms.jsonl."""
    streaks: dict[str, Streak] = field(default_factory=dict)
    first_sums: dict[str, float] = field(default_factory=dict)
    first_count: int = 0

    @property
    def rate_factor(self) -> float:
        """Factor of the learning rates, after the roll-backs so far."""
        return self.options.rollback_factor**self.rollbacks

    def observe(self, update: int, metrics: Mapping[str, float], row: Mapping[str, Any] | None = None) -> list[Alarm]:
        """Take in an update (update 0 has an evaluation alone); gives the alarms that call for something to be done."""
        seen = Seen(metrics, row, self._first_means())
        for name in self.options.each:
            value = MONITORS[name].read(seen)
            if value is not None:
                self._note(name, update, value)
        if update > 0:
            self._note_first(metrics)
        # A warning is given once; what stops or rolls back does so for as long as it stands.
        return [a for a in self.standing() if a.update == update and (a.action != "warn" or self._is_new(a))]

    def _note(self, name: str, update: int, value: float) -> None:
        before = self.streaks.get(name) or Streak(update - 1, value)
        is_fault = MONITORS[name].is_fault(value, self.options.each[name].threshold)
        self.streaks[name] = before.next(update, value, is_fault)

    def _first_means(self) -> dict[str, float]:
        if self.first_count < self.options.first_updates:
            return {}
        return {name: total / self.first_count for name, total in self.first_sums.items()}

    def _note_first(self, metrics: Mapping[str, float]) -> None:
        if self.first_count >= self.options.first_updates:
            return
        self.first_count += 1
        for name, value in metrics.items():
            if name in COMPARED or name.endswith("/disagreement"):
                self.first_sums[name] = self.first_sums.get(name, 0.0) + value

    def standing(self) -> list[Alarm]:
        """The alarms of the last readings, judged by the present options."""
        return [
            Alarm(
                name,
                options.action,
                streak.update,
                streak.since,
                streak.healthy_until - MONITORS[name].lag,
                streak.value,
                options.threshold,
            )
            for name, options in self.options.each.items()
            if (streak := self.streaks.get(name)) and streak.faults >= options.patience
        ]

    def _is_new(self, alarm: Alarm) -> bool:
        return self.streaks[alarm.monitor].faults == self.options.each[alarm.monitor].patience

    @property
    def sound_until(self) -> int | None:
        """The update up to which all monitors that roll back know the weights to be sound; None before any reading."""
        each = self.options.each
        rolling = {name: s for name, s in self.streaks.items() if name in each and each[name].action == "rollback"}
        return min((s.healthy_until - MONITORS[name].lag for name, s in rolling.items()), default=None)

    def metrics(self) -> dict[str, float]:
        """What is logged: monitors in alarm, and the roll-backs so far where there may be some."""
        if not self.options.each:
            return {}
        rolled = {"monitor/rollbacks": float(self.rollbacks)} if self.options.roll_back or self.rollbacks else {}
        return {"monitor/alarms": float(len(self.standing())), **rolled}

    def state_dict(self) -> dict[str, Any]:
        """Everything but the options."""
        return {
            "rollbacks": self.rollbacks,
            "told": self.told,
            "streaks": {name: dataclasses.asdict(streak) for name, streak in self.streaks.items()},
            "first_sums": self.first_sums,
            "first_count": self.first_count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on; the last readings are judged anew by the present thresholds, which may have been changed."""
        self.rollbacks, self.told = state["rollbacks"], list(state["told"])
        self.first_sums, self.first_count = dict(state["first_sums"]), state["first_count"]
        self.streaks = {name: Streak(**values) for name, values in state["streaks"].items()}
        for name, options in self.options.each.items():
            streak = self.streaks.get(name)
            if streak and streak.faults and not MONITORS[name].is_fault(streak.value, options.threshold):
                self.streaks[name] = Streak(streak.update, streak.value)
