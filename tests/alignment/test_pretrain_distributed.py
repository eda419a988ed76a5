"""Pretraining on two processes gives the losses of one: DDP with Muon, ZeRO with AdamW."""

import json

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from alignment.pretrain import STAGE
from launch.entry import run_stage_command
from tests.forked import run_forked, run_whole
from tests.support import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rows = [{"text": f"Item {i}: " + "word " * (i % 5)} for i in range(80)]
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = {
        "data": str(folder / "items.jsonl"),
        "heldout": "hash:0.2",
        "depth": 2,
        "width": 16,
        "heads": 2,
        "context": 16,
        "vocab_size": 261,
        "batch_tokens": 128,
        "micro_batch_tokens": 32,  # two micro-batches on each of two processes, four on one
        "tokens": 1280,
        "precision": "fp32",
        "log_steps": 1,
    }
    return [w for key, value in settings.items() for w in (f"--{key}", str(value))]


def losses(folder):
    return np.array([row["train/loss"] for row in read_metrics(folder) if "train/loss" in row])


@pytest.mark.parametrize(("zero_stage", "optimizer"), [(0, "muon"), (3, "adamw")])
def test_two_processes_give_the_losses_of_one(words, tmp_path, zero_stage, optimizer):
    one, two = tmp_path / "one", tmp_path / "two"
    run_stage_command(STAGE, [*words, "--optimizer", optimizer, "--output_dir", str(one)])
    call = [*words, "--optimizer", optimizer, "--output_dir", two]
    run_whole(call, tmp_path / "logs", 2, zero_stage, module="alignment.pretrain")
    assert json.loads((two / "provenance.json").read_text())["world"] == 2
    assert len(losses(one)) == 10
    assert np.abs(losses(two) - losses(one)).max() < 1e-4
    held = [read_metrics(folder)[-1]["heldout/nats_per_token_with_eos"] for folder in (one, two)]
    assert abs(held[0] - held[1]) < 1e-3
    for a, b in zip(*(AutoModelForCausalLM.from_pretrained(f).parameters() for f in (one, two)), strict=True):
        assert (a - b).abs().max() < 5e-3


def test_muon_under_zero_is_refused_in_one_sentence(words, tmp_path):
    words = [*words, "--optimizer", "muon", "--output_dir", str(tmp_path / "run")]
    job = run_forked(words, tmp_path / "logs", 1, 2, module="alignment.pretrain")
    assert job.codes == [2]
    assert "optimizer: muon needs whole matrices, which DeepSpeed ZeRO-2 splits" in job.say()
