"""The image generators on the digits at their default settings: Fréchet distance, precision and recall, three seeds.

    python -m benchmarks.generative --seeds 0 1 2

Each seed trains, samples 1,000 images and evaluates them as a user would. With `--try "KEY VALUE ..."` (repeatable,
`diffusion.prediction epsilon` for one) further settings are measured beside the defaults. The result goes to
benchmarks/results/generative.json, with the yardsticks of `evaluate images`: real digits held out, and independent
pixels. Extractor and generators are trained on one half of the digits; the other half is parted into reference and
yardstick. The extractor is no Inception, so the distance is `fd_digits`, not FID.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, alignkit
from evaluation.suites.images import PIXELS, REAL
from launch.files import folder_name, read_json, write_json

KINDS = ("vae", "gan", "diffusion")
YARDSTICKS = (REAL, PIXELS)
FIGURES = ("fd_digits", "is_digits", "precision_digits", "recall_digits")


def train_and_sample(kind: str, seed: int, options: list[str], folder: Path) -> dict[str, Any]:
    """Train one model and sample it into folder/images; what it took."""
    words = [f"--{word}" if index % 2 == 0 else word for index, word in enumerate(options)]
    times = alignkit("train-generative", "--kind", kind, "--seed", seed, *words, "--output_dir", folder / "model")
    alignkit("sample", "--model", folder / "model", "--seed", seed, "--output_dir", folder / "images")
    return {"seed": seed, **times}


def evaluate(folders: dict[str, Path], work: Path) -> dict[str, dict[str, Any]]:
    """The metrics of each folder of images and of the yardsticks, judged together: {subject: {figure: metric}}."""
    words = [word for name, folder in folders.items() for word in (f"--generators.{name}", folder)]
    alignkit("evaluate", "images", *words, "--output_dir", work)
    found = {}
    for name in (*folders, *YARDSTICKS):
        metrics = {m["name"].split("@")[0]: m for m in read_json(work / folder_name(name) / "results.json")["metrics"]}
        found[name] = {figure: metrics[figure] for figure in FIGURES}
    return found


def values(metrics: dict[str, Any]) -> dict[str, float]:
    """The bare numbers."""
    return {figure: entry["value"] for figure, entry in metrics.items()}


def describe_yardsticks(scores: dict[str, dict[str, Any]], work: Path) -> dict[str, Any]:
    """The yardsticks' figures with their intervals, what they were compared with, and the extractor."""
    shown = ("value", "ci_low", "ci_high", "n")
    protocol = read_json(work / folder_name(REAL) / "results.json")["protocol"]
    return {
        "yardsticks": {y: {f: {k: m[k] for k in shown} for f, m in scores[y].items()} for y in YARDSTICKS},
        "reference": {key: protocol[key] for key in ("dataset", "split", "n_items")},
        "extractor": protocol["settings"]["extractor"],
    }


def main() -> None:
    """Train, evaluate, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar='"KEY VALUE ..."')
    options = parser.parse_args()
    settings = ["", *options.tries]
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for seed in options.seeds:
            names = {f"{kind}_{number}": (kind, text) for kind in options.kinds for number, text in enumerate(settings)}
            folders = {label: work / str(seed) / label for label in names}
            made = {
                label: train_and_sample(kind, seed, text.split(), folders[label])
                for label, (kind, text) in names.items()
            }
            scores = evaluate({label: folder / "images" for label, folder in folders.items()}, work / f"scores-{seed}")
            for label, (kind, text) in names.items():
                rows.setdefault(f"{kind} {text}".strip(), []).append(made[label] | values(scores[label]))
        yardsticks = describe_yardsticks(scores, work / f"scores-{options.seeds[-1]}")
        provenance = read_json(next(iter(folders.values())) / "model" / "provenance.json")
    result = {
        "benchmark": "generative",
        "command": f"python -m benchmarks.generative --seeds {' '.join(map(str, options.seeds))}"
        + "".join(f' --try "{text}"' for text in options.tries),
        "runs": rows,
        "mean": {k: {f: statistics.fmean(r[f] for r in group) for f in FIGURES} for k, group in rows.items()},
        **yardsticks,
        "threads": torch.get_num_threads(),
        "hardware": provenance["hardware"],
        "versions": provenance["versions"],
        "code": provenance["code"],
    }
    write_json(RESULTS / "generative.json", result)
    for label, means in result["mean"].items():
        spread = [f"{r['fd_digits']:.1f}" for r in rows[label]]
        print(f"{label}: fd_digits {means['fd_digits']:.1f} ({', '.join(spread)})")
    for name, figures in yardsticks["yardsticks"].items():
        print(f"{name}: fd_digits {figures['fd_digits']['value']:.1f}")


if __name__ == "__main__":
    main()
