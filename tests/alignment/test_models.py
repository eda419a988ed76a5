"""Models as the stages load them: no dropout of any kind, no head made at random, whole weights where nothing trains."""

import contextlib

import pytest
import torch

from alignment import models
from alignment.models import load_causal, load_tokenizer
from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_critic, load_roles
from alignment.reward.model import RewardModel
from evaluation.artefacts import load_reward_model
from launch.errors import UserError
from tests.support import save_policy, save_reward, word_tokenizer


def ppo_config(policy, reward, **rest):
    return PPOConfig(policy=str(policy), reward=str(reward), prompts="-", **rest)


def test_the_roles_of_ppo_have_no_dropout_in_attention_either(tmp_path):
    policy = save_policy(tmp_path / "policy", attention_dropout=0.5)
    reward = save_reward(tmp_path / "reward", attention_dropout=0.5)
    roles = load_roles(ppo_config(policy, reward))
    ids = torch.arange(4, 14)[None]
    for model in (roles.policy.train(), roles.critic.train()):
        assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    "load",
    [
        lambda name: load_critic(ppo_config(name, name), word_tokenizer()),
        RewardModel.from_pretrained,
        lambda name: load_reward_model("model", name, torch.device("cpu")),
    ],
    ids=["critic", "RewardModel", "evaluation"],
)
def test_a_head_that_was_never_trained_is_refused(load, tmp_path):
    folder = save_policy(tmp_path / "policy", num_labels=1)
    with pytest.raises(UserError, match=r"the weights lack score\.weight, so this is no trained reward model"):
        load(str(folder))


def test_the_field_that_names_a_model_is_named(tmp_path):
    policy, reward = str(save_policy(tmp_path / "policy")), str(save_reward(tmp_path / "reward"))
    with pytest.raises(UserError, match=r"^policy: .*nowhere: could not be loaded as a tokenizer"):
        load_roles(ppo_config(tmp_path / "nowhere", reward))
    with pytest.raises(UserError, match=r"^reference: .*nowhere: could not be loaded as a causal language model"):
        load_roles(ppo_config(policy, reward, reference=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"^tokenizer: .*nowhere: could not be loaded as a tokenizer"):
        load_tokenizer(str(tmp_path / "nowhere"), "tokenizer")


@pytest.mark.parametrize("partitioned", [False, True])
def test_only_what_an_engine_runs_is_loaded_in_parts(partitioned, tmp_path, monkeypatch):
    entered = []

    @contextlib.contextmanager
    def spy():
        entered.append(True)
        yield

    monkeypatch.setattr(models, "plain_weights", spy)
    load_causal(str(save_policy(tmp_path)), word_tokenizer(), partitioned=partitioned)
    assert entered == ([] if partitioned else [True])
