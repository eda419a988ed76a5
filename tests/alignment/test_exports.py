"""Artefacts in a Python that does not have alignkit: plain transformers gives the same numbers."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.reward.model import RewardModel
from tests.commands import run_command
from tests.support import environment, save_policy, save_prompts, save_reward

ALONE = """
import importlib.abc, json, sys

class NoAlignkit(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"launch", "data", "evaluation", "generative", "alignment"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoAlignkit())
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
policy_dir, *reward_dirs, text = sys.argv[1:]
rewards = []
with torch.no_grad():
    ids = AutoTokenizer.from_pretrained(policy_dir)(text, return_tensors="pt")["input_ids"]
    logits = AutoModelForCausalLM.from_pretrained(policy_dir).eval()(ids).logits[0, -1]
    for reward_dir in reward_dirs:
        tokenizer = AutoTokenizer.from_pretrained(reward_dir)
        inputs = tokenizer(text + " " + tokenizer.eos_token, return_tensors="pt", add_special_tokens=False)
        rewards.append(float(AutoModelForSequenceClassification.from_pretrained(reward_dir).eval()(**inputs).logits))
print(json.dumps([logits.tolist(), rewards]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("exports")
    save_policy(root / "policy")
    save_reward(root / "reward")
    save_prompts(root / "prompts.jsonl")
    roles = ["--policy", root / "policy", "--reward", root / "reward", "--prompts", root / "prompts.jsonl"]
    settings = ["--updates", 2, "--batch_size", 8, "--max_new_tokens", 4, "--learning_rate", "1e-3"]
    result = run_command("alignment.ppo", *roles, *settings, "--output_dir", root / "ppo")
    assert result.returncode == 0, result.stderr
    return root


def test_policy_and_reward_model_without_alignkit(trained):
    text = "the of and to"
    policy_dir, reward_dirs = trained / "ppo", [str(trained / "reward"), str(trained / "ppo" / "critic")]
    command = [sys.executable, "-c", ALONE, str(policy_dir), *reward_dirs, text]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    logits, rewards = json.loads(result.stdout)
    ids = AutoTokenizer.from_pretrained(policy_dir)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(policy_dir).eval()(ids).logits[0, -1]
    assert torch.equal(torch.tensor(logits), expected)
    for reward_dir, reward in zip(reward_dirs, rewards, strict=True):
        ours = RewardModel.from_pretrained(reward_dir)
        assert ours.score(["the of and"], [" to"])[0] == pytest.approx(reward, abs=1e-6)


def test_model_card_reads_as_one(trained):
    import yaml

    _, header, body = (trained / "ppo" / "README.md").read_text().split("---", 2)
    card = yaml.safe_load(header)
    assert "model-index" not in card and "| reward/score |" in body  # it was not evaluated: these are of its training
    assert "policy" in body and "sha256" in body
