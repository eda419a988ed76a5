"""PPO on one base, and with a value head on the trunk: two processes follow one, under DDP and ZeRO 1, 2, 3; and resume."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from launch.files import sha256_file
from tests.distributed.test_ppo_distributed import MODES
from tests.support import accelerate_launch, alignkit, read_metrics, save_adapter, save_policy, save_prompts

pytestmark = pytest.mark.distributed
UPDATES = 4
VARIANTS = {"lora": {"lora.rank": 6}, "trunk": {"critic_from": "trunk", "critic_learning_rate": 1e-2}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    base = save_policy(root / "base")
    return {
        "policy": save_adapter(root / "sft", base, seed=2),
        "reward": save_adapter(root / "reward", base, seed=3, head=True),
        "prompts": save_prompts(root / "prompts.jsonl"),
    }


def words(inputs, out, variant):
    settings = dict(
        **inputs,
        output_dir=out,
        updates=UPDATES,
        batch_size=10,
        minibatches=2,
        epochs=2,
        micro_batch_size=2,
        forward_batch_size=4,
        max_new_tokens=8,
        learning_rate=1e-3,
        precision="fp32",
        checkpoint_steps=1,
        keep_checkpoints=9,
        **VARIANTS[variant],
    )
    return [str(w) for key, value in settings.items() for w in (f"--{key}", value)]


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """alone(variant) -> the folder of a run on one process, made when first asked for."""
    made = {}

    def get(variant):
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp(variant) / "ppo"
            result = alignkit("ppo", *words(inputs, made[variant], variant))
            assert result.returncode == 0, result.stderr[-3000:]
        return made[variant]

    return get


def largest_difference(a, b):
    rows = list(zip(read_metrics(a), read_metrics(b), strict=True))
    assert len(rows) == UPDATES
    return max(abs(x[name] - y[name]) / max(1.0, 10 * abs(x[name])) for x, y in rows for name in x)


def check_same_models(ours, theirs):
    """Policy and critic of two runs as plain transformers reads them."""
    ids = torch.tensor([[3, 4, 5, 6]])
    for folder, kind in ((".", AutoModelForCausalLM), ("critic", AutoModelForSequenceClassification)):
        a, b = kind.from_pretrained(ours / folder), kind.from_pretrained(theirs / folder)
        with torch.no_grad():
            assert torch.allclose(a(ids).logits, b(ids).logits, atol=1e-3), folder


@pytest.mark.parametrize(
    ("mode", "variant"), [("ddp", "lora"), ("zero1", "lora"), ("zero2", "lora"), ("zero3", "lora"), ("zero3", "trunk")]
)
def test_two_processes_follow_one_and_resume_to_the_bit(inputs, alone, tmp_path, mode, variant):
    """Minibatches of 5 over 2 ranks: one rank passes an empty micro-batch; the ranks' responses differ in length."""
    out, resumed = tmp_path / "whole", tmp_path / "resumed"
    result = accelerate_launch("alignment.ppo", words(inputs, out, variant), 2, MODES[mode])
    assert result.returncode == 0, result.stderr[-3000:]
    assert largest_difference(alone(variant), out) < 1e-4
    check_same_models(out, alone(variant))
    if mode in ("ddp", "zero1"):
        return
    shutil.copytree(out, resumed)
    for name in ("provenance.json", "model.safetensors", "critic/model.safetensors"):
        (resumed / name).unlink()
    for number in range(3, UPDATES + 1):
        shutil.rmtree(resumed / "checkpoints" / f"step-{number:08}")
    again = accelerate_launch("alignment.ppo", words(inputs, resumed, variant), 2, MODES[mode])
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resuming after step 2" in again.stderr
    names = ["model.safetensors", "critic/model.safetensors"]
    names += ["adapter/adapter_model.safetensors"] if variant == "lora" else []
    for name in names:
        assert sha256_file(resumed / name) == sha256_file(out / name), name
    assert read_metrics(resumed) == read_metrics(out)
