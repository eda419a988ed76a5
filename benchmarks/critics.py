"""Where should PPO's critic live: on the policy's trunk, or in a model of its own? The demo's PPO with each, over seeds.

    python -m benchmarks.critics --seeds 0 1 2    (20 minutes on two cores; writes benchmarks/results/critics.json)

The lifecycle of `make demo` up to PPO is run once; then its PPO, samples on held-out prompts and the gold judge's verdict
again for each critic and seed of PPO, all else the same. `rewards times 10`: the KL weight, the penalty for a missing EOS and
the clip of values are 10 times as large, too, so that nothing but the unit of rewards is another. `objective` is the gold
judge's reward less the recipe's weight of the KL divergence times that. For times see benchmarks.ppo.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, about, alignkit
from launch.files import read_json, write_json

KL_COEF, MISSING_EOS_PENALTY, VALUE_CLIP = 0.1, 1.0, 0.2
"""What the demo has, by its recipe or by default."""
SCALE = 10
SCALED = {
    "reward": "null",
    "rewards.model.model": "@reward",
    "rewards.model.weight": SCALE,
    "kl_coef": SCALE * KL_COEF,
    "missing_eos_penalty": SCALE * MISSING_EOS_PENALTY,
    "value_clip": SCALE * VALUE_CLIP,
}
CRITICS: dict[str, dict[str, Any]] = {
    "reward model": {"critic_from": "reward"},
    "copy of the policy": {"critic_from": "policy"},
    "trunk": {"critic_from": "trunk"},
    "trunk, value_coef 1": {"critic_from": "trunk", "value_coef": 1.0},
    "reward model, rewards times 10": {"critic_from": "reward", **SCALED},
    "trunk, rewards times 10": {"critic_from": "trunk", **SCALED},
}
NEEDED = (
    "base,sft,samples_a_plain,samples_a_wild,samples_b_plain,samples_b_wild,samples_eval_wild,completions_sft,preferences_a,"
    "preferences_b,preferences_eval,reward,gold"
)
STAGES = "ppo,completions_ppo,win_ppo"
FIGURES = ("win_rate", "win_rate_length_controlled", "judge_reward", "proxy_reward", "kl_k1")


def run(folder: Path, changes: dict[str, Any]) -> dict[str, float]:
    """The figures of one PPO run of the demo on the held-out prompts."""
    words = [word for key, value in changes.items() for word in (f"--ppo.{key}", value)]
    alignkit("run", "demo", "--output_dir", folder, "--stages", STAGES, *words)
    metrics = read_json(folder / "win_ppo" / "results.json")["metrics"]
    found = {metric["name"]: metric["value"] for metric in metrics if metric["name"] in FIGURES}
    return {**found, "objective": found["judge_reward"] - KL_COEF * found["kl_k1"]}


def main() -> None:
    """All critics over all seeds; the result is written after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    measured = about("python -m benchmarks.critics --seeds " + " ".join(map(str, options.seeds)))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CRITICS}
    with tempfile.TemporaryDirectory() as name:
        alignkit("run", "demo", "--output_dir", Path(name) / "demo", "--stages", NEEDED)
        for seed, (critic, changes) in itertools.product(options.seeds, CRITICS.items()):
            row = run(Path(name) / "demo", {**changes, "seed": seed})
            runs[critic].append(row)
            print(critic, seed, {key: round(value, 3) for key, value in row.items()}, flush=True)
            means = {c: {k: statistics.fmean(r[k] for r in rows) for k in rows[0]} for c, rows in runs.items() if rows}
            write_json(RESULTS / "critics.json", {**measured, "seeds": options.seeds, "means": means, "runs": runs})


if __name__ == "__main__":
    main()
