"""Data and runs that the tests of SFT, reward modelling and DPO share."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from launch.entry import run_stage_command
from tests.support import WORDS

GOOD, BAD = WORDS[:9], WORDS[9:]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_pairs(path: Path, n: int = 48, seed: int = 0) -> Path:
    """Different prompts of 2 to 8 words; the completion is 1 to 6 words."""
    draw = random.Random(seed)
    rows = [
        {
            "prompt": " ".join(draw.choices(WORDS, k=draw.randint(2, 8))),
            "completion": " ".join(draw.choices(WORDS, k=draw.randint(1, 6))),
        }
        for _ in range(n)
    ]
    return write_rows(path, rows)


def save_preferences(path: Path, n: int = 48, seed: int = 0, ties: int = 0) -> Path:
    """Answers made of GOOD words beat answers made of BAD words; lengths say nothing."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        good, bad = (" ".join(draw.choices(words, k=draw.randint(2, 6))) for words in (GOOD, BAD))
        rows.append({"prompt": " ".join(draw.choices(WORDS, k=4)), "chosen": good, "rejected": bad, "tie": i < ties})
    return write_rows(path, rows)


def run(stage, output_dir: Path, *words: object) -> Path:
    """Run a stage in this process, in fp32."""
    run_stage_command(stage, ["--precision", "fp32", "--output_dir", str(output_dir), *map(str, words)])
    return output_dir


def summary(folder: Path) -> dict:
    return json.loads((folder / "provenance.json").read_text())["summary"]


def weights_sha(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
