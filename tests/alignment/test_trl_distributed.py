"""SFT, reward model and DPO on two real processes: the losses of one, whole artefacts, and a resume under ZeRO."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.dpo import STAGE as DPO
from alignment.reward import STAGE as REWARD
from alignment.sft import STAGE as SFT
from tests.alignment.trl_support import run, save_pairs, save_preferences, summary
from tests.forked import run_forked
from tests.support import read_metrics, save_policy

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    preferences = save_preferences(folder / "preferences.jsonl", 50)
    data = {SFT.name: save_pairs(folder / "pairs.jsonl", 50), REWARD.name: preferences, DPO.name: preferences}
    return save_policy(folder / "model", tie_word_embeddings=True), data


def words(inputs, stage):
    """12 or 14 steps of 8 rows, in micro-batches of 2 (4 on one process, 2 on each of two); an odd number of held-out rows."""
    model, data = inputs
    return ["--model", model, "--data", data[stage.name], "--batch_size", 8, "--micro_batch_size", 2, "--epochs", 2,
            "--learning_rate", 1e-3, "--max_grad_norm", 0.5, "--checkpoint_steps", 5]  # fmt: skip


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """Runs on one process by stage, made when first asked for."""
    made = {}

    def get(stage):
        if stage.name not in made:
            made[stage.name] = run(stage, tmp_path_factory.mktemp(stage.name) / "one", *words(inputs, stage))
        return made[stage.name]

    return get


def launch(stage, folder, inputs, zero_stage):
    arguments = [*words(inputs, stage), "--precision", "fp32", "--output_dir", folder]
    return run_forked(arguments, folder.with_name("logs"), 2, zero_stage, module=f"alignment.{stage.name}")


def losses(folder):
    return torch.tensor([row["loss"] for row in read_metrics(folder) if "loss" in row])


CASES = [(SFT, 3), (REWARD, 0), (DPO, 2)]  # all the others: tests/distributed/test_every_stage.py


@pytest.mark.parametrize(("stage", "zero_stage"), CASES, ids=lambda value: getattr(value, "name", value))
def test_two_processes_give_the_losses_of_one(stage, zero_stage, inputs, alone, tmp_path):
    job = launch(stage, tmp_path / "two", inputs, zero_stage)
    assert job.codes == [0, 0], job.say()[-3000:]
    one, two = alone(stage), tmp_path / "two"
    provenance = json.loads((two / "provenance.json").read_text())
    assert (provenance["world"], provenance["zero_stage"]) == (2, zero_stage)
    assert len(losses(one)) >= 10
    assert (losses(two) - losses(one)).abs().max() < 1e-4
    for name in ("eval_loss", "accuracy", "eval_accuracy", "mean_before", "std_before"):
        if name in summary(one):
            assert summary(two)[name] == pytest.approx(summary(one)[name], abs=1e-3)
    kind = AutoModelForSequenceClassification if stage is REWARD else AutoModelForCausalLM
    models = [kind.from_pretrained(folder).eval() for folder in (one, two)]
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        assert torch.allclose(models[0](ids).logits, models[1](ids).logits, atol=2e-2)
    if stage is not REWARD:
        assert models[1].lm_head.weight.data_ptr() == models[1].model.embed_tokens.weight.data_ptr()  # still tied


def test_resume_under_zero_is_exact_and_bound_to_the_same_world(inputs, tmp_path):
    """The artefact and the last checkpoint are taken away, as if the job had died after step 10."""
    folder = tmp_path / "run"
    assert launch(SFT, folder, inputs, 2).codes == [0, 0]
    whole, weights = read_metrics(folder), (folder / "model.safetensors").read_bytes()
    for name in ("provenance.json", "model.safetensors"):
        (folder / name).unlink()
    *_, before, last = sorted((folder / "checkpoints").iterdir())
    assert before.name == "step-00000010"
    shutil.rmtree(last)
    refused = launch(SFT, folder, inputs, 0)
    assert 0 not in refused.codes
    assert "saved by 2 processes under ZeRO stage 2, this job has 2 under stage 0" in refused.say()
    done = launch(SFT, folder, inputs, 2)
    assert done.codes == [0, 0], done.say()[-3000:]
    assert "resuming after step 10" in done.say()
    assert read_metrics(folder) == whole
    assert (folder / "model.safetensors").read_bytes() == weights
