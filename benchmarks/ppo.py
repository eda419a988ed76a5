"""alignkit's PPO against TRL 1.12's, the last release of TRL that has PPO: time, memory, reward, in one run.

python -m benchmarks.ppo --trl_python ENV/bin/python    (writes benchmarks/results/ppo.json)

ENV is an environment of its own with `pip install trl==1.12.0` beside the versions of torch and transformers that alignkit
has. Both sides read the same weights and prompts and use the same batch, lengths, epochs and micro-batches. Every run is a
process; in each round the two take turns, the order changing, so that ratios are of runs side by side.

- `like for like`: policy, critic, reference and reward model are four models on both sides, fp32, no gradient
  checkpointing. `like for like, bf16`: under autocast, for a GPU.
- `defaults`: TRL as it comes (four models, bf16 autocast, gradient checkpointing); alignkit as it comes (four models,
  `precision: auto`, which measures).
- `defaults, critic on the trunk`: the same, but alignkit has `critic_from: trunk`, which is cheaper and may learn less.
- `reward`: both by their defaults with a learning rate that learns, for the same wall-clock time; `reward, critic on the
  trunk`: with alignkit's critic there.

A GPU is used where there is one; peak memory is then its own. There, run

python -m benchmarks.ppo --trl_python ENV/bin/python --model 0.5B --settings "like for like, bf16" defaults --warmup 4

(half a billion parameters; writes ppo-gpu-0.5B.json).

A ratio above 1 says that alignkit is faster or smaller. Phases: `generate`, `score` (forward passes without gradient and
rewards), `update` (the rest); they sum to the step. `over_bare_passes`: the step over the sum of its sampling and of the
passes that it is made of, as transformers makes them in the same process.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, about, result_file
from benchmarks.ppo_case import MODELS, Case, write_case
from launch.files import read_json, write_json

SETTINGS: dict[str, dict[str, Any]] = {
    "like for like": {"precision": "fp32"},
    "like for like, bf16": {"precision": "bf16"},
    "defaults": {"precision": "auto", "trl_defaults": True},
    "defaults, critic on the trunk": {"precision": "auto", "trl_defaults": True, "own_critic": False},
}
REWARDS = {"reward": "defaults", "reward, critic on the trunk": "defaults, critic on the trunk"}
"""Name of a comparison of rewards -> the setting that it is of."""
PHASES = ("generate", "score", "update")
REWARD_WINDOW = 5
"""Updates over which the reward that was reached is averaged."""
PARTS = (0.25, 0.5, 1.0)
"""Of the time, after which the reward is looked at."""
KL_COEF = 0.05
"""The default of both sides."""


@contextlib.contextmanager
def on_disk(case: Case) -> Iterator[Path]:
    """The folder of a case, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder), case)
        yield Path(folder)


def run_side(side: str, trl_python: str, folder: Path) -> dict[str, Any]:
    """One process of `ours` or `trl` on the case in `folder`."""
    script = ["-m", "benchmarks.ppo_ours"] if side == "ours" else [str(ROOT / "benchmarks" / "ppo_trl.py")]
    python = sys.executable if side == "ours" else trl_python
    done = subprocess.run([python, *script, str(folder)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{side}: {done.stderr[-3000:]}")
    for line in done.stderr.splitlines():
        if line.startswith("alignkit: warning"):
            print(line, flush=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def describe(run: dict[str, Any], case: Case) -> dict[str, Any]:
    """Medians over the updates of a run: seconds by phase, rates; and the peak of its resident set."""
    updates = run["updates"]
    seconds = statistics.median(u["seconds"] for u in updates)
    lengths = [u["length"] for u in updates]
    return {
        "seconds": seconds,
        **{phase: statistics.median(u[phase] for u in updates) for phase in PHASES},
        "episodes_per_second": case.batch / seconds,
        "response_tokens_per_second": case.batch * statistics.mean(lengths) / seconds,
        "peak_mib": run["peak_mib"],
        "peak_above_imports_mib": run["peak_mib"] - run["imports_mib"],
        "precision": run.get("precision", "bf16" if run.get("bf16") else "fp32"),
        **({"over_bare_passes": seconds / sum_of_passes(run, case)} if "bare_passes" in run else {}),
    }


def sum_of_passes(run: dict[str, Any], case: Case) -> float:
    """Seconds of a step's sampling and of transformers' own passes over its episodes: each model that reads them, and the forward
    and backward passes of those that train, in each epoch. At natural lengths these have padding that no trainer needs.

    The reference is a policy, and the reward model is counted as a critic, which it is but for what it reads at its end."""
    bare, generate = run["bare_passes"], statistics.median(u["generate"] for u in run["updates"])
    reading = 2 * bare["policy, forward"] + (1 + case.own_critic) * bare["critic, forward"]
    training = bare["policy, training"] + case.own_critic * bare["critic, training"]
    return generate + reading + case.epochs * training


def compare(case: Case, trl_python: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn; the ratio of each round, its median and range."""
    rows: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    with on_disk(case) as folder:
        for turn in range(rounds):
            for side in ("ours", "trl") if turn % 2 else ("trl", "ours"):
                row = describe(run_side(side, trl_python, folder), case)
                rows[side].append(row)
                rounded = {k: v if isinstance(v, str) else round(v, 3) for k, v in row.items()}
                print(case.name, side, rounded, flush=True)
    quotients = {
        name: [theirs[key] / ours[key] for ours, theirs in zip(rows["ours"], rows["trl"], strict=True)]
        for name, key in (
            ("speed", "seconds"),
            ("memory", "peak_mib"),
            ("memory_above_imports", "peak_above_imports_mib"),
        )
    }
    return {
        "rounds": rows,
        "ratios": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in quotients.items()
        },
    }


def reward_curve(run: dict[str, Any]) -> list[tuple[float, float, float]]:
    """(seconds since the start, mean score of the rollout, its sequence KL to the reference) of each update."""
    ends = itertools.accumulate(update["seconds"] for update in run["updates"])
    return [
        (round(end, 2), round(u["reward"], 4), round(u["kl"], 3)) for end, u in zip(ends, run["updates"], strict=True)
    ]


def reached(run: dict[str, Any], seconds: float) -> dict[str, float]:
    """Means over the last updates that were over after so many seconds: score, KL, and the objective, score less KL_COEF KL."""
    last = [row for row in reward_curve(run) if row[0] <= seconds][-REWARD_WINDOW:]
    score, kl = (statistics.mean(values) for values in list(zip(*last, strict=True))[1:])
    return {"score": score, "kl": kl, "objective": score - KL_COEF * kl}


def compare_rewards(case: Case, trl_python: str) -> dict[str, Any]:
    """The reward both sides reach in the same time, and what they start from."""
    with on_disk(case) as folder:
        runs = {side: run_side(side, trl_python, folder) for side in ("trl", "ours")}
    shared = min(sum(u["seconds"] for u in run["updates"]) for run in runs.values())
    return {
        "seconds": shared,
        **{
            side: {
                "updates": len(run["updates"]),
                "reached": {f"{part:.0%} of the time": reached(run, part * shared) for part in PARTS},
                "curve: seconds, score, KL": reward_curve(run),
            }
            for side, run in runs.items()
        },
    }


def main() -> None:
    """All cases; the result is written after each, so that a benchmark that is cut short keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl_python", required=True, help="the interpreter of the environment with trl==1.12.0")
    parser.add_argument("--rounds", type=int, default=3, help="0: the cases that the file holds stay")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument(
        "--warmup", type=int, default=1, help="updates before those; on a GPU the first ones capture graphs"
    )
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[1024, 32768])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["like for like", "defaults"])
    parser.add_argument("--model", choices=list(MODELS), default="small")
    parser.add_argument("--reward_seconds", type=float, default=90.0, help="of the comparison of rewards; 0 for none")
    options = parser.parse_args()
    sizes: dict[str, Any] = MODELS[options.model]
    path = result_file("ppo", options.model)
    words = shlex.join(sys.argv[1:]).replace(options.trl_python, "ENV/bin/python")
    measured = about(f"python -m benchmarks.ppo {words}")
    result: dict[str, Any] = {
        **measured,
        "protocol": "median over the updates of a run, ratios of runs side by side, median and range over rounds",
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "trl": "1.12.0",
        "cases": {},
    }
    if not options.rounds:
        result = read_json(path)
    for vocabulary in options.vocabularies if options.rounds else ():
        for natural in (False, True):
            for setting in options.settings:
                case = replace(
                    Case(vocabulary, natural, updates=options.updates, warmup=options.warmup),
                    **SETTINGS[setting],
                    **sizes,
                )
                result["cases"][f"{case.name}, {setting}"] = compare(case, options.trl_python, options.rounds)
                write_json(path, result)
    if options.reward_seconds:
        case = Case(1024, False, updates=10_000, warmup=0, learning_rate=3e-4, seconds=options.reward_seconds)
        for name, setting in REWARDS.items():
            learnable = replace(case, learnable=True, **{**SETTINGS[setting], **sizes})
            result[name] = {**measured, **compare_rewards(learnable, options.trl_python)}
            write_json(path, result)


if __name__ == "__main__":
    main()
