"""PPO jobs are killed at random moments, resumed, killed again, and run to their end: is anything lost, is anything different?

python -m benchmarks.soak --kills 200    (5 to 15 minutes on two cores; writes benchmarks/results/soak.json)

SIGKILL to one rank or to all of them: half of the kills at a moment drawn from the time that the run takes, half at the
beginning of, or somewhere in, a phase that is drawn (the steps of a save take too short a time to be hit otherwise). After
each one the newest checkpoint must verify and must not be older than the last step whose save had returned. At its end
each job is compared with one that nobody killed: SHA-256 of the weights of policy and critic, and all metrics. Exit code 1
when any of that fails, or when fewer kills were made than wanted.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, about
from launch.files import write_json
from tests.distributed.test_ppo_distributed import words
from tests.kills import PHASES, Kill, finish, result_of, strike
from tests.support import save_policy, save_prompts, save_reward

UPDATES = 8
KILLS_OF_A_JOB = 4
AHEAD = {
    "rollouts_ahead": 1,
    "dump_rollouts": "jsonl",
    "normalise_scores": True,
    "kl_target": 1.0,
    "critic_from": "trunk",
}
MODES = {
    "1 process": (1, 0, 0.5),
    "2 processes, DDP": (2, 0, 0.2),
    "2 processes, ZeRO-1": (2, 1, 0.1),
    "2 processes, ZeRO-2": (2, 2, 0.1),
    "2 processes, ZeRO-3": (2, 3, 0.1),
}
"""Processes, ZeRO stage, share of the kills."""


@dataclass
class Tally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    identical: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass
class Case:
    """A way to run the job, and how it ends and how long it takes when nobody kills it."""

    name: str
    world: int
    zero_stage: int
    changes: dict[str, Any]
    root: Path
    inputs: tuple[Path, Path, Path]
    result: Any = None
    seconds: float = 0.0

    def words(self, out: Path) -> list[Any]:
        settings = {"updates": UPDATES, "checkpoint_steps": 1, "epochs": 1, "watchdog_minutes": 5, **self.changes}
        return words(self.inputs, out, **settings)

    def run_undisturbed(self) -> None:
        """Twice: the first run of all starts the server that the others are forked from."""
        for name in ("whole", "again"):
            out, start = self.root / name, time.monotonic()
            finish(self.words(out), out, self.root / "logs", self.world, self.zero_stage)
            self.seconds, before, self.result = time.monotonic() - start, self.result, result_of(out)
        if self.result != before:
            raise RuntimeError(f"{self.name}: two undisturbed runs differ, so there is nothing to compare with")


def draw_kill(rng: random.Random, case: Case) -> tuple[Kill, float | None]:
    """A kill, and for one by the clock the seconds after the job's first phase."""
    phase, every = rng.choice(PHASES), rng.random() < 0.5
    if rng.random() < 0.5:
        return Kill(0, "", 0.0, rng.randrange(case.world), every), rng.uniform(0.01, case.seconds)
    delay = rng.uniform(0.0, 0.1) if phase in ("rollout", "score", "update") else 0.0
    # What happens on the main rank alone can be hit there alone.
    rank = 0 if phase in PHASES[PHASES.index("seal") :] else rng.randrange(case.world)
    return Kill(0, phase, delay, rank, every), None


def run_job(case: Case, number: int, rng: random.Random, wanted: int, tally: Tally) -> int:
    """Kill a job up to KILLS_OF_A_JOB times and let it end; returns the kills."""
    out, logs = case.root / f"out{number}", case.root / f"logs{number}"
    call, kept, made = case.words(out), 0, 0
    while made < min(KILLS_OF_A_JOB, wanted) and kept < UPDATES:
        kill, after_s = draw_kill(rng, case)
        kill = Kill(rng.randint(kept + 1, UPDATES), kill.phase, kill.delay_s, kill.rank, kill.all_ranks)
        blow = strike(call, out, logs, kill, case.world, case.zero_stage, after_s)
        if blow is None:  # it was over before
            break
        made += 1
        tally.kills["by the clock" if after_s else "in a drawn phase"] += 1
        tally.phases[blow.phase] += 1
        tally.victims["all ranks" if kill.all_ranks or case.world == 1 else "one rank of two"] += 1
        tally.lost += max(0, max(blow.acknowledged, kept) - blow.kept)
        kept = blow.kept
    if not (out / "provenance.json").exists():
        went_on = finish(call, out, logs, case.world, case.zero_stage)
        tally.lost += max(0, kept - went_on)
    tally.jobs[case.name] += 1
    tally.identical[case.name] += result_of(out) == case.result
    return made


def find_failures(tally: Tally, wanted: int) -> list[str]:
    """What the soak found wrong, a sentence each; `wanted` is the number of kills that it should have made."""
    kills, jobs, identical = (sum(counts.values()) for counts in (tally.kills, tally.jobs, tally.identical))
    found = [f"a fault: {fault}" for fault in tally.faults]
    if kills != wanted:
        found.append(f"{kills} kills were made, {wanted} were wanted")
    if tally.lost:
        found.append(f"{tally.lost} acknowledged steps were lost")
    if identical != jobs or not jobs:
        found.append(f"{identical} of {jobs} jobs ended as the undisturbed run did")
    return found


def make_cases(root: Path) -> list[tuple[Case, float]]:
    """Every mode plain and with rollouts ahead, and the share of the kills that it gets."""
    inputs = (save_policy(root / "policy"), save_reward(root / "reward"), save_prompts(root / "prompts.jsonl"))
    cases = []
    for name, (world, zero_stage, share) in MODES.items():
        for title, changes in (("", {}), (", rollouts ahead", AHEAD)):
            place = root / f"{world}-{zero_stage}{len(title)}"
            cases.append((Case(f"{name}{title}", world, zero_stage, changes, place, inputs), share / 2))
    return cases


def main() -> None:
    """Run all cases; write the tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tally, start, planned = Tally(), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        for index, (case, share) in enumerate(make_cases(Path(folder))):
            case.run_undisturbed()
            wanted, made, number = max(1, round(options.kills * share)), 0, 0
            planned += wanted
            rng = random.Random(1000 * options.seed + index)
            while made < wanted and number < 3 * wanted:
                try:
                    made += run_job(case, number, rng, wanted - made, tally)
                except (AssertionError, ValueError) as fault:
                    tally.faults.append(f"{case.name}, job {number}: {str(fault)[:500]}")
                    made += 1
                number += 1
            print(f"{case.name}: {made} kills, {number} jobs, {time.monotonic() - start:.0f} s", flush=True)
    jobs, identical = sum(tally.jobs.values()), sum(tally.identical.values())
    failures = find_failures(tally, planned)
    summary = {
        "kills": sum(tally.kills.values()),
        "kills_wanted": planned,
        "jobs": jobs,
        "jobs_identical_to_the_undisturbed_run": identical,
        "acknowledged_steps_lost": tally.lost,
        "faults": tally.faults,
    }
    print(summary)
    details = {key: dict(getattr(tally, key)) for key in ("kills", "victims", "phases", "jobs", "identical")}
    write_json(
        RESULTS / "soak.json",
        {
            **about(f"python -m benchmarks.soak --kills {options.kills}"),
            "updates": UPDATES,
            "checkpoint_steps": 1,
            **summary,
            "details": details,
            "seconds": round(time.monotonic() - start),
        },
    )
    if failures:
        sys.exit("the soak failed: " + "; ".join(failures))


if __name__ == "__main__":
    main()
