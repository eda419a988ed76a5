"""Models as the stages load them: no dropout of any kind, no head made at random, whole weights where nothing trains."""

import contextlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from alignment import models
from alignment.models import load_causal, load_tokenizer
from alignment.ppo.config import PPOConfig, SharedLora
from alignment.ppo.models import load_critic, load_roles
from alignment.reward.head import load_scorer
from alignment.reward.model import RewardModel
from evaluation.artefacts import load_language_model, load_reward_model
from launch.errors import UserError
from tests.support import save_adapter, save_policy, save_reward, word_tokenizer


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
    with pytest.raises(
        UserError,
        match=r"the weights lack score\.weight, it holds a Qwen3ForCausalLM, so this is no trained reward model",
    ):
        load(str(folder))


LACKING = r"the weights lack lm_head\.weight, it holds a Qwen3ForSequenceClassification, so this is no trained"


@pytest.mark.parametrize(
    "load",
    [
        lambda name: load_roles(ppo_config(name, name)),
        lambda name: load_causal(name, word_tokenizer(), field="model"),
        lambda name: load_language_model("model", name, torch.device("cpu")),
        lambda name: load_roles(ppo_config(name, name, lora=SharedLora(rank=2))),
    ],
    ids=["ppo", "stages", "evaluation", "lora"],
)
def test_a_reward_model_is_no_policy(load, tmp_path):
    """Policy and reference would be given different heads, both at random."""
    folder = save_reward(tmp_path / "reward")
    with pytest.raises(UserError, match=LACKING):
        load(str(folder))


def test_the_adapter_of_a_reward_model_is_no_policy(tmp_path):
    adapter = save_adapter(tmp_path / "adapter", save_policy(tmp_path / "base"), head=True)
    with pytest.raises(UserError, match="no language model"):
        load_causal(str(adapter), word_tokenizer())
    with pytest.raises(UserError, match=r"^policy: .* is a reward model"):
        load_roles(ppo_config(adapter, adapter, lora=SharedLora(rank=2)))


def test_tied_heads_are_not_lacking(tmp_path):
    tied = save_policy(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    model = load_causal(str(tied), word_tokenizer())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_goes_only_on_a_whole_body(tmp_path):
    folder = save_policy(tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"^model: .*lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_scorer(str(folder), word_tokenizer(), 0)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def as_bin(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_a_shard(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    next(folder.glob("model-00002-*")).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "model.safetensors", -100),
        lambda folder: cut(folder / "model.safetensors", 0),
        lambda folder: (as_bin(folder), cut(folder / "pytorch_model.bin", -100)),
        lambda folder: (as_bin(folder), cut(folder / "pytorch_model.bin", 100)),
        lambda folder: (as_bin(folder), cut(folder / "pytorch_model.bin", 0)),
        without_a_shard,
    ],
    ids=["cut", "empty", "bin cut", "bin head", "bin empty", "shard"],
)
def test_weights_that_are_not_whole_are_one_sentence(tmp_path, damage):
    folder = save_policy(tmp_path / "policy")
    damage(folder)
    with pytest.raises(UserError, match=r"^model: .*policy: .*(damaged|could not be loaded)") as caught:
        load_causal(str(folder), word_tokenizer())
    assert "\n" not in str(caught.value)


def test_an_adapter_that_is_not_whole_is_one_sentence(tmp_path):
    adapter = save_adapter(tmp_path / "adapter", save_policy(tmp_path / "base"))
    cut(adapter / "adapter_model.safetensors", -50)
    for load in (
        lambda: load_causal(str(adapter), word_tokenizer(), field="policy"),
        lambda: load_roles(ppo_config(adapter, adapter, lora=SharedLora(rank=2))),
    ):
        with pytest.raises(UserError, match=r"^policy: .*adapter_model\.safetensors is damaged"):
            load()


def test_what_transformers_reports_of_heads_is_left_out_and_other_weights_are_not(tmp_path, caplog):
    folder = save_policy(tmp_path / "policy")
    logging.get_logger().addHandler(caplog.handler)
    try:
        load_scorer(str(folder), word_tokenizer(), 0)
        assert "LOAD REPORT" not in caplog.text
        weights = load_file(folder / "model.safetensors")
        save_file({**weights, "model.extra.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
        load_causal(str(folder), word_tokenizer())
        assert "LOAD REPORT" in caplog.text and "extra" in caplog.text
    finally:
        logging.get_logger().removeHandler(caplog.handler)


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
