"""A reward model on Anthropic's hh-rlhf (harmless): held-out accuracy, with what length alone explains beside it.

    python -m benchmarks.reward_hh --seeds 0 1 2

No pretrained weights are used. A small GPT is pretrained on the transcripts of the TRAINING pairs; reward models
start from it and, for comparison, from the same architecture with random weights. Everything runs through `alignkit`
as a user would run it. The pairs are looked for in $ALIGNKIT_DATA/hh_rlhf_harmless (anthropics/hh-rlhf,
harmless-base/test.jsonl.gz, split 2,012 / 300). The result goes to benchmarks/results/reward_hh.json.

Expect little: the published accuracies of about 70 % come from 40,000 pairs and models that have read the internet.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import DATA, RESULTS, alignkit
from data import load_preferences, plain_text
from launch.files import read_json, write_json

PAIRS = DATA / "hh_rlhf_harmless"
SHAPE = ["--depth", "3", "--width", "128", "--heads", "2", "--context", "512", "--vocab_size", "2048"]
PLACES = ("data", "eval_data", "model", "output_dir")  # paths of the machine that ran it; the command names the data
FIGURES = [
    "accuracy", "accuracy_low", "accuracy_high", "longest_baseline", "longest_baseline_low", "longest_baseline_high",
    "shortest_baseline", "loss", "ece", "ece_plug_in", "ece_if_calibrated", "length_slope", "length_correlation", "eval_pairs",
    "eval_pairs_too_long", "pairs", "pairs_too_long", "disturbance_heldout", "mean_before", "std_before",
]  # fmt: skip


def write_transcripts(path: Path) -> None:
    """Both transcripts of every training pair, as documents."""
    pairs = load_preferences(PAIRS / "split.train.jsonl.gz", "drop")
    texts = {plain_text(p.prompt) + plain_text(side): None for p in pairs for side in (p.chosen, p.rejected)}
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def save_random(base: Path, folder: Path) -> None:
    """The architecture and the tokenizer of the base model, with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def run_reward(model: Path, seed: int, folder: Path) -> dict[str, Any]:
    """One reward model: its figures, times and provenance."""
    words = [
        "--data",
        PAIRS / "split.train.jsonl.gz",
        "--eval_data",
        PAIRS / "split.test.jsonl.gz",
        "--invalid",
        "drop",
    ]
    times = alignkit(
        "reward", "--config", "reward_hh", "--model", model, *words, "--seed", seed, "--output_dir", folder
    )
    provenance = read_json(folder / "provenance.json")
    found = {name: provenance["summary"].get(name) for name in FIGURES}
    return {"seed": seed, **found, **times, "provenance": provenance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="pretraining tokens")
    seeds, tokens = (values := parser.parse_args()).seeds, values.tokens
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_transcripts(work / "transcripts.jsonl")
        base, random = work / "base", work / "random"
        times = alignkit(
            "pretrain", "--data", work / "transcripts.jsonl", *SHAPE, "--tokens", tokens, "--output_dir", base
        )
        pretraining = read_json(base / "provenance.json")["summary"]
        save_random(base, random)
        runs = {
            start.name: [run_reward(start, seed, work / f"{start.name}-{seed}") for seed in seeds]
            for start in (base, random)
        }
    provenance = [row.pop("provenance") for rows in runs.values() for row in rows][-1]
    result = {
        "benchmark": "reward_hh",
        "command": f"python -m benchmarks.reward_hh --seeds {' '.join(map(str, seeds))} --tokens {tokens}",
        "data": "anthropics/hh-rlhf harmless-base/test.jsonl.gz, 2,012 pairs to train and 300 held out",
        "pretraining": {"tokens": tokens, **times, "summary": pretraining},
        "from_pretrained": runs["base"],
        "from_random_weights": runs["random"],
        "config": {k: v for k, v in provenance["config"].items() if k not in PLACES},
        "precision": provenance["precision"],
        "hardware": provenance["hardware"],
        "versions": provenance["versions"],
        "code": provenance["code"],
    }
    write_json(RESULTS / "reward_hh.json", result)
    for start, rows in runs.items():
        for row in rows:
            print(
                f"{start} seed {row['seed']}: accuracy {row['accuracy']:.3f} [{row['accuracy_low']:.3f}, "
                f"{row['accuracy_high']:.3f}] of {row['eval_pairs']} pairs; longest answer {row['longest_baseline']:.3f}"
            )


if __name__ == "__main__":
    main()
