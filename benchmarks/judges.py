"""How far judges agree with people: reward models on hh-rlhf, and judges that read nothing on hh-rlhf and Auto-J.

    OMP_NUM_THREADS=1 python -m benchmarks.judges    (about eight minutes; writes benchmarks/results/judges.json)

Three small reward models (benchmarks/reward_hh.py: 2,012 training pairs, a GPT pretrained on their text) judge the 300
held-out pairs as `alignkit evaluate judge` and `evaluate reward --ensemble` have them; expect little of such models. Data:
$ALIGNKIT_DATA/hh_rlhf_harmless and autoj_pairwise (1,392 pairs with ties, labelled by people).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import DATA, RESULTS, about, alignkit
from benchmarks.reward_hh import PAIRS, SHAPE, write_transcripts
from data import load_preferences, plain_text
from evaluation.preferences.accuracy import outcomes
from evaluation.preferences.judging import agreement_metrics
from evaluation.schema import Metric, load
from evaluation.suites.judge_run import gather_ballots
from launch.files import write_json

SEEDS = (0, 1, 2)
TOKENS = 1_000_000
AUTOJ = DATA / "autoj_pairwise" / "autoj_pairwise.jsonl.gz"


def numbers(entry: Metric) -> dict[str, Any]:
    """Value, interval and n."""
    found = {
        "value": entry.value,
        "low": entry.ci_low,
        "high": entry.ci_high,
        "n": entry.n,
        "interval": entry.ci_method,
    }
    return found | ({"extra": entry.extra} if entry.extra else {})


def blind_judges(source: Path) -> dict[str, Any]:
    """Agreement with people of judges that read nothing but lengths."""
    ballots = gather_ballots(load_preferences(source, "drop"))
    people = np.array([b.outcome for b in ballots])
    prompts = [plain_text(b.prompt) for b in ballots]
    lengths = np.array([len(plain_text(b.first)) - len(plain_text(b.second)) for b in ballots], dtype=float)
    found = {}
    for name, judged in (("longest", outcomes(lengths)), ("shortest", outcomes(-lengths))):
        found[name] = {m.name: numbers(m) for m in agreement_metrics(judged, people, prompts)}
    return {"pairs": len(ballots), "ties_of_people": int((people == 0.5).sum()), **found}


def reward_models(root: Path) -> dict[str, Any]:
    """Three reward models of one base: each as a judge, and together as an ensemble."""
    write_transcripts(root / "transcripts.jsonl")
    alignkit(
        "pretrain", "--data", root / "transcripts.jsonl", *SHAPE, "--tokens", TOKENS, "--output_dir", root / "base"
    )
    models = []
    for seed in SEEDS:
        models.append(root / f"reward{seed}")
        words = ["--config", "reward_hh", "--model", root / "base", "--data", PAIRS / "split.train.jsonl.gz"]
        words += ["--eval_data", PAIRS / "split.test.jsonl.gz", "--invalid", "drop", "--seed", seed]
        alignkit("reward", *words, "--output_dir", models[-1])
    held_out = ["--preferences", PAIRS / "split.test.jsonl.gz", "--invalid", "drop"]
    found: dict[str, Any] = {}
    for seed, model in zip(SEEDS, models, strict=True):
        alignkit("evaluate", "judge", "--judge", model, *held_out, "--output_dir", root / f"judge{seed}")
        found[f"reward model, seed {seed}"] = {m.name: numbers(m) for m in load(root / f"judge{seed}").metrics}
    others = ",".join(map(str, models[1:]))
    alignkit(
        "evaluate", "reward", "--model", models[0], "--ensemble", others, *held_out, "--output_dir", root / "ensemble"
    )
    found["ensemble"] = {m.name: numbers(m) for m in load(root / "ensemble").metrics}
    for values in found.values():
        if "calibration_error" in values:
            values["calibration_error"]["extra"].pop("bins")
    return found


def main() -> None:
    """Measure and write the result."""
    with tempfile.TemporaryDirectory() as name:
        models = reward_models(Path(name))
    result = {
        "benchmark": "judges",
        **about("OMP_NUM_THREADS=1 python -m benchmarks.judges"),
        "hh_rlhf_harmless": {"content-blind": blind_judges(PAIRS / "split.test.jsonl.gz"), **models},
        "autoj_pairwise": {"content-blind": blind_judges(AUTOJ)},
    }
    write_json(RESULTS / "judges.json", result)


if __name__ == "__main__":
    main()
