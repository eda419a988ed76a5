"""Models as the stages load them: no dropout of any kind, no head made at random, whole weights where nothing trains."""

import contextlib

import pytest
import torch

from alignment import models
from alignment.models import load_causal, load_tokenizer
from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_critic, load_roles
from alignment.reward.head import load_scorer
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
    with pytest.raises(UserError, match=r"^policy: .*nowhere: no such folder"):
        load_roles(ppo_config(tmp_path / "nowhere", reward))
    with pytest.raises(UserError, match=r"^reference: .*nowhere: no such folder"):
        load_roles(ppo_config(policy, reward, reference=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"^tokenizer: .*nowhere: no such folder"):
        load_tokenizer(str(tmp_path / "nowhere"), "tokenizer")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^tokenizer: .*empty: the folder is empty; give a folder made by"):
        load_tokenizer(str(tmp_path / "empty"), "tokenizer")
    (tmp_path / "empty" / ".lock").touch()  # as a run leaves it that made nothing
    with pytest.raises(UserError, match=r"^tokenizer: .*empty: the folder is empty"):
        load_tokenizer(str(tmp_path / "empty"), "tokenizer")
    (tmp_path / "empty" / "notes.md").write_text("no tokenizer")
    with pytest.raises(
        UserError, match=r"could not be loaded as a tokenizer \(.*from one of: \(1\) .*\); give a folder"
    ):
        load_tokenizer(str(tmp_path / "empty"), "tokenizer")


LOADERS = {
    "tokenizer": load_tokenizer,
    "causal": lambda name: load_causal(name, word_tokenizer()),
    "reward": lambda name: RewardModel.from_pretrained(name),
    "critic": lambda name: load_critic(ppo_config(name, name), word_tokenizer()),
    "scorer": lambda name: load_scorer(name, word_tokenizer(), 0),
    "evaluation": lambda name: load_reward_model("model", name, torch.device("cpu")),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "missing: no such folder; did you mean 'missin'"),
        ("./org/name", "no such folder"),
        ("/org/name", "no such folder"),
        ("runs/a/ppo", "no such folder"),
        ("runs/ppo", "runs/ppo: no such folder; did you mean 'pp0'"),
        ("../name", "no such folder"),
        ("some.file", "some.file: is a file"),
    ],
)
def test_a_path_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, loader, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "missin").mkdir()
    (tmp_path / "runs" / "pp0").mkdir(parents=True)
    (tmp_path / "some.file").write_text("x")
    with pytest.raises(UserError) as raised:
        LOADERS[loader](name)
    assert message in str(raised.value) and "hub:org/name" in str(raised.value)


@pytest.mark.parametrize("name", ["org/name", "hub:org/name", "hub:gpt2"])
def test_a_name_of_the_hub_without_network_is_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for loader, load in LOADERS.items():
        with pytest.raises(
            UserError, match=r"HF_HUB_OFFLINE is set, and no copy was downloaded before\); give"
        ) as raised:
            load(name)
        assert name in str(raised.value) and "\n" not in str(raised.value), loader
    save_policy(tmp_path / "org" / "name")
    if name == "org/name":  # a folder that is there wins
        assert load_causal(name, word_tokenizer()).num_parameters() > 0


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
