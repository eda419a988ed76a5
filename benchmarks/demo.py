"""The whole lifecycle of `make demo` as a user runs it, over seeds: what it costs, and whether PPO earns its place.

    python -m benchmarks.demo --seeds 0 1 2

Each seed is `alignkit run demo --output_dir FOLDER --seed N` in a folder of its own. benchmarks/results/demo.json then
holds, for each seed, the wall seconds of the run and the seconds of each stage (as its own record has them; stages run
side by side, so they add up to more) and the models' figures with their intervals as in the report's leaderboard,
and beside them the spread over seeds.

The code is 1 when for some seed the interval of PPO's win rate against SFT is not above 50 %, or the interval of its
KL divergence is not within the recipe's budget: the two that the demo promises.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, alignkit
from launch.files import read_json, write_json

POLICY = "ppo"
FIGURES = (
    "win_rate", "win_rate_length_controlled", "win_rate_against_reference", "win_rate_by_length", "judge_reward",
    "proxy_reward", "kl_k1", "bits_per_byte", "accuracy",
)  # fmt: skip
SHOWN = ("value", "ci_low", "ci_high", "n", "baseline")


def run_seed(recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """One lifecycle in an empty folder: its cost, the seconds of its stages, and its leaderboard."""
    cost = alignkit("run", recipe, "--output_dir", folder, "--seed", seed)
    stages = {path.parent.name: read_json(path) for path in sorted(folder.glob("*/provenance.json"))}
    (board,) = folder.glob("*/leaderboard.json")
    return {
        "seed": seed,
        **cost,
        "stage_seconds": {name: round(record["seconds"], 1) for name, record in stages.items()},
        "rows": leaderboard_rows(read_json(board)),
        "commit": next(iter(stages.values()))["code"],
    }


def leaderboard_rows(content: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """{subject: {figure: value, interval, n, baseline, and the budget where there is one}} of a leaderboard.json."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for board in content["leaderboards"]:
        for row in board["rows"]:
            for cell in row["cells"].values():
                if cell["name"] in FIGURES:
                    found = {key: cell[key] for key in SHOWN if cell[key] is not None}
                    if cell["extra"].get("budget") is not None:
                        found["budget"] = cell["extra"]["budget"]
                    rows.setdefault(row["name"], {})[cell["name"]] = found
    return rows


def broken_promises(run: dict[str, Any], policy: str = POLICY) -> list[str]:
    """A sentence for each promise that a run did not keep; a number or a limit that is missing keeps none."""
    found = run["rows"].get(policy, {})
    win, kl = found.get("win_rate", {}), found.get("kl_k1", {})
    broken = []
    if not win.get("ci_low", 0.0) > 0.5:
        broken.append(
            f"seed {run['seed']}: the win rate of {policy} against {win.get('baseline', 'its baseline')}, "
            f"{describe(win)}, is not above 0.5"
        )
    if not kl.get("ci_high", float("inf")) <= kl.get("budget", float("-inf")):
        budget = f"{kl['budget']:g} nats" if "budget" in kl else "the recipe (there is none)"
        broken.append(
            f"seed {run['seed']}: the KL divergence of {policy}, {describe(kl)}, is over the budget of {budget}"
        )
    return broken


def describe(figure: dict[str, Any]) -> str:
    """A value with its interval."""
    if "value" not in figure:
        return "which was not measured"
    limits = [f"{figure[key]:.3f}" if key in figure else "?" for key in ("ci_low", "ci_high")]
    return f"{figure['value']:.3f} [{', '.join(limits)}]"


def spread(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, lowest, highest and standard deviation over the seeds, of the wall seconds and of each subject's figures."""
    figures = {(subject, name) for run in runs for subject, row in run["rows"].items() for name in row}
    found: dict[str, Any] = {"wall_seconds": over_seeds([run["wall_seconds"] for run in runs])}
    for subject, name in sorted(figures):
        cells = [run["rows"].get(subject, {}).get(name, {}) for run in runs]
        values = [cell["value"] for cell in cells if "value" in cell]
        found.setdefault(subject, {})[name] = over_seeds(values)
    return found


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """How values of one figure are spread; the deviation is that of a sample, 0 for one seed."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": statistics.fmean(values),
        "lowest": min(values),
        "highest": max(values),
        "deviation": deviation,
        "seeds": len(values),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write the result, say what was not kept. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="demo", help="a lifecycle with a report and a policy named ppo")
    parser.add_argument("--result", type=Path, default=RESULTS / "demo.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        runs = [run_seed(options.recipe, seed, Path(name) / str(seed)) for seed in options.seeds]
        record = read_json(next(Path(name).glob("*/*/provenance.json")))
    broken = [line for run in runs for line in broken_promises(run)]
    result = {
        "benchmark": "demo",
        "command": f"python -m benchmarks.demo --seeds {' '.join(map(str, options.seeds))}",
        "recipe": Path(options.recipe).name,
        "runs": runs,
        "spread": spread(runs),
        "broken_promises": broken,
        "hardware": record["hardware"],
        "versions": record["versions"],
    }
    write_json(options.result, result)
    for run in runs:
        win = run["rows"].get(POLICY, {}).get("win_rate", {})
        print(f"seed {run['seed']}: {run['wall_seconds']:.0f} s, win rate of {POLICY} {describe(win)}")
    for line in broken:
        print(f"NOT KEPT: {line}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
