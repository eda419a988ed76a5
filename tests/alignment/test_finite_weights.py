"""The last update of every stage: a loss that was finite before it says nothing of the weights after it."""

import pytest
import torch

from alignment import dpo, ppo, pretrain, reward, sft
from alignment.ppo.trainer import PPOTrainer
from launch.engine import Engine
from launch.errors import UserError
from tests.alignment.trl_support import run, save_pairs, save_preferences
from tests.support import save_policy, save_prompts, save_reward


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("finite")
    save_policy(root / "policy")
    save_reward(root / "reward")
    save_prompts(root / "prompts.jsonl", 8)
    save_pairs(root / "pairs.jsonl", 8)
    save_preferences(root / "preferences.jsonl", 8)
    (root / "book.txt").write_text("".join(f"Line {i} of the book says {i * i}.\n" for i in range(60)))
    return root


# 1e39 is finite in the config and infinite in float32
TRL = "--model policy --batch_size 8 --epochs 1 --warmup_fraction 0 --eval_fraction 0 --learning_rate 1e39"
STAGES = {
    "pretrain": (
        pretrain.STAGE,
        "--data book.txt --heldout last:0.2 --depth 1 --width 16 --heads 2 --context 16 --vocab_size 261 --batch_tokens 128 --tokens 128",
    ),
    "sft": (sft.STAGE, f"{TRL} --data pairs.jsonl"),
    "reward": (reward.STAGE, f"{TRL} --data preferences.jsonl"),
    "dpo": (dpo.STAGE, f"{TRL} --data preferences.jsonl"),
    "ppo": (
        ppo.STAGE,
        "--policy policy --reward reward --prompts prompts.jsonl --updates 1 --batch_size 8 --max_new_tokens 4",
    ),
}


@pytest.mark.parametrize("checkpoint_steps", [0, 1])
@pytest.mark.parametrize("name", STAGES)
def test_weights_that_are_not_finite_are_never_written(place, tmp_path, monkeypatch, name, checkpoint_steps):
    monkeypatch.chdir(place)
    honest = Engine.step

    def step(engine):
        norm = honest(engine)
        with torch.no_grad():
            list(engine.module.parameters())[-1].view(-1)[-1] = float("inf")
        return norm

    monkeypatch.setattr(Engine, "step", step)  # torch's own AdamW refuses such a rate, the fused one of TRL does not
    monkeypatch.setattr(PPOTrainer, "_check_finite", lambda *_: None)  # its later minibatches would see it
    stage, words = STAGES[name]
    with pytest.raises(UserError, match=r"the last update made weights that are not finite .*lower learning_rate"):
        run(stage, tmp_path / "out", *words.split(), "--checkpoint_steps", checkpoint_steps)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
