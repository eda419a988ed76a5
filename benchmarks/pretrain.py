"""Pretraining on tinyshakespeare: held-out nats per character over several seeds.

    python -m benchmarks.pretrain pretrain_tinyshakespeare --seeds 0 1 2
    python -m benchmarks.pretrain pretrain_tinyshakespeare_5min --seeds 0 1 2

Runs `alignkit pretrain --config RECIPE` once for each seed as a user would, and writes the figures, their spread, the
command, the hardware and the versions to benchmarks/results/<recipe>.json. With `--tokens N` it trains on so many
characters instead and writes nothing: to see whether all works. The text is looked for in
$ALIGNKIT_DATA/tinyshakespeare/input.txt (karpathy/char-rnn, data/tinyshakespeare/input.txt).

Of each seed: `train_seconds`, the wall time of the optimizer steps; `wall_seconds` and `cpu_seconds`, of the whole process
with its imports, the precision trial, the held-out figures and the saving.

Protocol: the last 10 % of the characters are held out. They are scored in disjoint windows of the training context,
each character but the first exactly once; a window's first characters have little context, so longer contexts score
better at equal models. nanoGPT's figure for its CPU recipe (1.88) is over random windows of 64 characters, each scored
the same way.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import DATA, RESULTS, alignkit
from launch.files import read_json, write_json

GOALS = {  # held-out nats per character, and seconds of the whole process
    "pretrain_tinyshakespeare": (1.60, None),
    "pretrain_tinyshakespeare_5min": (1.50, 300),
}
SPREADS = ("nats_per_character", "train_seconds", "wall_seconds", "cpu_seconds")


def run_seed(recipe: str, text: Path, seed: int, folder: Path, changes: list[str]) -> dict[str, Any]:
    """One run in a process of its own: figures of its provenance, wall and processor seconds of the whole process."""
    times = alignkit("pretrain", "--config", recipe, "--data", text, "--seed", seed, "--output_dir", folder, *changes)
    provenance = read_json(folder / "provenance.json")
    summary = provenance["summary"]
    return {
        "seed": seed,
        "nats_per_character": summary["heldout/nats_per_token_with_eos"],
        "bits_per_character": summary["heldout/bits_per_byte"],
        "train_seconds": round(summary["perf/train_seconds"], 1),
        **times,
        "tokens_per_second": round(summary["tokens_per_second"]),
        "provenance": provenance,
    }


def spread(values: list[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation and range over the seeds."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd, "min": min(values), "max": max(values), "n_seeds": len(values)}


def summarise(recipe: str, threads: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The result file: the spread over seeds and each seed's figures, with what made them."""
    provenance = rows[0]["provenance"]
    summary = provenance["summary"]
    nats, seconds = GOALS[recipe]
    return {
        "benchmark": recipe,
        "command": f"python -m benchmarks.pretrain {recipe} --seeds {' '.join(str(r['seed']) for r in rows)}",
        "protocol": "last 10 % of the characters, disjoint windows of the training context, each character but the first scored once",
        **{name: spread([row[name] for row in rows]) for name in SPREADS},
        "goal": {"mean_nats_per_character": nats, "max_wall_seconds": seconds},
        "training_characters": summary["tokens"],
        "epochs": summary["epochs"],
        "parameters": summary["parameters"],
        "parameters_without_rows_of_unused_tokens": summary["parameters_used"],
        "heldout_characters": summary["heldout_tokens"],
        "plan": provenance["choices"]["plan"],
        "precision": provenance["precision"],
        "omp_num_threads": threads,
        "runs": [{k: v for k, v in row.items() if k != "provenance"} for row in rows],
        "hardware": provenance["hardware"],
        "versions": provenance["versions"],
        "code": provenance["code"],
    }


def main() -> None:
    """Run the seeds and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=list(GOALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, help="train on so many characters, and write no result file")
    options = parser.parse_args()
    text = DATA / "tinyshakespeare" / "input.txt"
    if not text.exists():
        parser.exit(2, f"{text} is not there; set ALIGNKIT_DATA to the folder that holds tinyshakespeare/input.txt\n")
    threads = os.environ.get("OMP_NUM_THREADS", "all cores")
    changes = [] if options.tokens is None else ["--tokens", str(options.tokens)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:  # written after each seed: a benchmark that is cut short keeps what it has
            rows.append(run_seed(options.recipe, text, seed, Path(folder) / str(seed), changes))
            result = summarise(options.recipe, threads, rows)
            if not changes:
                write_json(RESULTS / f"{options.recipe}.json", result)
            print({name: result[name] for name in SPREADS}, flush=True)


if __name__ == "__main__":
    main()
