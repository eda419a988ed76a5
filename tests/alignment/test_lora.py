"""LoRA adapters: read and merged as peft does it, several on one base, trained by the stages `sft` and `reward`."""

import json
import shutil
import threading
import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from alignment.lora.adapted import AdaptedModel
from alignment.lora.config import LoraOptions
from alignment.lora.layers import CAUSAL, CLASSIFIER
from alignment.lora.training import with_adapter
from alignment.models import load_causal
from alignment.reward import STAGE as REWARD
from alignment.reward import RewardConfig
from alignment.reward.head import load_scorer
from alignment.reward.model import RewardModel
from alignment.sft import STAGE as SFT
from alignment.trl_stage.preferences import load_preference_split
from evaluation.adapters import adapter_folder, read_adapter, split_adapter
from launch.config import build
from launch.errors import UserError
from tests.alignment.trl_support import run, save_pairs, save_preferences, summary
from tests.support import save_adapter, save_policy, save_reward, word_tokenizer

IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def base(root):
    return save_policy(root / "base")


@pytest.fixture(scope="module")
def adapters(root, base):
    return save_adapter(root / "one", base, seed=2), save_adapter(root / "two", base, seed=3, rank=2)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def peft_logits(folder):
    return logits(AutoPeftModelForCausalLM.from_pretrained(str(folder)).eval())


def adapted(base, default="one"):
    return AdaptedModel(load_causal(str(base), word_tokenizer()), str(base), default)


# ------------------------------------------------------------------------------------------------ reading


def test_an_adapter_is_read_merged_as_peft_applies_it(base, adapters):
    bare = logits(AutoModelForCausalLM.from_pretrained(base))
    for folder in adapters:
        merged = load_causal(str(folder), word_tokenizer())
        assert not any("lora" in name for name, _ in merged.named_parameters())
        assert torch.allclose(logits(merged), peft_logits(folder), atol=1e-5)
        assert not torch.allclose(bare, peft_logits(folder), atol=0.1)


def test_layers_that_keep_their_weight_transposed(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=23, n_embd=16, n_layer=1, n_head=2, n_positions=64, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    folder = save_adapter(tmp_path / "adapter", tmp_path / "base", fan_in_fan_out=True)
    assert torch.allclose(logits(load_causal(str(folder), word_tokenizer())), peft_logits(folder), atol=1e-5)
    model = adapted(tmp_path / "base")
    model.add_frozen("one", read_adapter("x", str(folder)), "x")
    assert torch.allclose(logits(model.model), peft_logits(folder), atol=1e-5)
    state = dict(model.effective_state("one"))
    plain = GPT2LMHeadModel(config)
    plain.load_state_dict(state)
    assert torch.allclose(logits(plain.eval()), peft_logits(folder), atol=1e-5)


def test_a_reward_adapter_is_a_reward_model(root, base):
    folder = save_adapter(root / "judge", base, seed=5, head=True)
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()
    ours = RewardModel.from_pretrained(folder, device="cpu")
    theirs.config.pad_token_id = 0
    assert ours.score_tokens(IDS, torch.ones_like(IDS)).tolist() == pytest.approx(
        logits(theirs)[:, 0].tolist(), abs=1e-5
    )
    assert ours.score(["the of"], ["and to"])  # its tokenizer, and the pad token that an adapter has no config to hold


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(use_dora=True), "an adapter with use_dora; only plain LoRA"),
        (dict(rank_pattern={"q_proj": 2}), "an adapter with rank_pattern"),
        (dict(modules_to_save=["lm_head"]), "it holds base_model.model.lm_head.weight, and only plain LoRA"),
    ],
)
def test_what_is_not_plain_lora_is_refused(tmp_path, base, changes, message):
    with pytest.raises(UserError, match=f"model: .*: {message}"):
        load_causal(str(save_adapter(tmp_path / "odd", base, **changes)), word_tokenizer())


def test_an_adapter_needs_its_own_base(tmp_path, base):
    folder = save_adapter(tmp_path / "adapter", save_policy(tmp_path / "gone"))
    (tmp_path / "gone").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"its base .*gone is not there; put it back, or mend base_model_name_or_path"):
        load_causal(str(folder), word_tokenizer())
    other = save_policy(tmp_path / "gone", num_hidden_layers=1)
    with pytest.raises(
        UserError, match=r"has no linear layer model\.layers\.1\.\S+; the adapter belongs to another model"
    ):
        load_causal(str(folder), word_tokenizer())
    with pytest.raises(UserError, match=r"reward: .*no linear layer"):
        adapted(other).add_frozen("one", read_adapter("reward", str(folder)), "reward")


# ------------------------------------------------------------------------------------------------ several on one base


def test_each_adapter_acts_as_in_peft(base, adapters):
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapters[0]), "one").eval()
    reference.load_adapter(str(adapters[1]), "two")
    model = adapted(base)
    model.add_frozen("one", read_adapter("x", str(adapters[0])), "x")
    model.add_frozen("two", read_adapter("x", str(adapters[1])), "x")
    for name in ("one", "two"):
        reference.set_adapter(name)
        with model.acting(name):
            assert torch.allclose(logits(model.model), logits(reference), atol=1e-6)
        plain = AutoModelForCausalLM.from_pretrained(base)
        plain.load_state_dict(dict(model.effective_state(name)))
        assert torch.allclose(logits(plain), logits(reference), atol=1e-5)
    with model.acting(None):
        assert torch.equal(logits(model.model), logits(AutoModelForCausalLM.from_pretrained(base)))
    assert torch.allclose(logits(model.model), peft_logits(adapters[0]), atol=1e-5)  # the default


def test_which_adapter_acts_is_a_matter_of_the_thread(base, adapters):
    model = adapted(base)
    model.add_frozen("one", read_adapter("x", str(adapters[0])), "x")
    model.add_frozen("two", read_adapter("x", str(adapters[1])), "x")
    found = []
    with model.acting("two"):
        thread = threading.Thread(target=lambda: found.append(logits(model.model)))
        thread.start()
        thread.join()
    assert torch.allclose(found[0], peft_logits(adapters[0]), atol=1e-5)


def test_gradients_reach_the_acting_adapter_alone(base, adapters):
    model = adapted(base)
    model.add_trained("one", LoraOptions(rank=4), 0, None)
    model.add_trained("two", LoraOptions(rank=4), 0, None)
    model.add_frozen("kept", read_adapter("x", str(adapters[0])), "x")
    trained = {name for name, p in model.model.named_parameters() if p.requires_grad}
    assert trained and all(".one." in name or ".two." in name for name in trained)
    with model.acting("two"):
        total = model.model(IDS).logits.square().sum()
    total.backward()  # after the block: what acted in the forward pass counts
    assert all(p.grad is None for p in model.parameters("one"))
    assert all(p.grad is not None for p in model.parameters("two"))
    assert trained == {name for name, p in model.model.named_parameters() if p.requires_grad}


def test_an_adapter_continues_another_of_lower_rank_and_other_scale(base, adapters):
    model = adapted(base)
    start = read_adapter("x", str(adapters[1]))
    model.add_trained("one", LoraOptions(rank=5, alpha=7.0), 0, start)
    assert torch.allclose(logits(model.model), peft_logits(adapters[1]), atol=1e-5)
    a, b = model.parameters("one")[:2]
    assert a.shape[0] == b.shape[1] == 5
    assert not b[:, 2:].any() and a[2:].abs().min() > 0
    model.model(IDS).logits.square().sum().backward()
    assert b.grad[:, 2:].abs().min() > 0  # the new columns learn
    with pytest.raises(
        UserError, match=r"lora.rank: 1 is below the rank 2 of the adapter .*; give --lora.rank 2 or more"
    ):
        adapted(base).add_trained("one", LoraOptions(rank=1), 0, start)
    with pytest.raises(UserError, match=r"lora.targets: the adapter .* changes model\.layers\.0\..*; add \w+_proj"):
        adapted(base).add_trained("one", LoraOptions(rank=4, targets=["q_proj"]), 0, start)


def test_targets(base):
    model = adapted(base)
    model.add_trained("one", LoraOptions(rank=2, targets=["q_proj", "v_proj"]), 0, None)
    assert {path.rpartition(".")[2] for path in model.layers} == {"q_proj", "v_proj"}
    for wrong in ("lm_head", "qproj"):
        with pytest.raises(UserError, match=f"lora.targets: the model has no linear layer '{wrong}'"):
            adapted(base).add_trained("one", LoraOptions(targets=[wrong]), 0, None)


def test_the_head_that_is_saved_is_the_one_that_learns(base):
    """peft trains a copy of the head; its forward must not keep to the weight that was copied."""
    model = load_scorer(str(base), word_tokenizer(), seed=0)
    wrapped = with_adapter(model, str(base), LoraOptions(rank=2), CLASSIFIER, 0, None)
    wrapped(input_ids=IDS).logits.sum().backward()
    heads = {name: p for name, p in wrapped.named_parameters() if "score" in name}
    assert {name for name, p in heads.items() if p.requires_grad and p.grad is not None and p.grad.any()} == {
        "base_model.model.score.modules_to_save.default.weight"
    }


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, r"lora\.rank: 0 is below 1"),
        ({"alpha": 0}, r"lora\.alpha: 0.0 is not above 0"),
        ({"rnk": 4}, r"unknown key 'lora\.rnk'; did you mean 'rank'"),
        ({"rank": "x"}, r"lora\.rank: 'x' is not an integer"),
    ],
)
def test_the_config_group_names_its_errors(lora, message):
    with pytest.raises(UserError, match=message):
        build(SFT.config, {"model": "m", "data": "d", "lora": lora}, "recipe.yaml")


# ------------------------------------------------------------------------------------------------ the stages


TRAINING = ("--learning_rate", 2e-2, "--batch_size", 8, "--epochs", 2, "--checkpoint_steps", 3, "--keep_checkpoints", 9)


def sft_words(root, base):
    words = ("--model", base, "--data", root / "pairs.jsonl", "--eval_fraction", 0.2, "--lora.rank", 4)
    return (*words, *TRAINING)


def reward_words(root, sft):
    words = ("--model", sft, "--data", root / "preferences.jsonl", "--eval_fraction", 0.3, "--lora.rank", 6)
    return (*words, *TRAINING)


@pytest.fixture(scope="module")
def sft(root, base):
    save_pairs(root / "pairs.jsonl")
    return run(SFT, root / "sft", *sft_words(root, base))


@pytest.fixture(scope="module")
def reward(root, sft):
    save_preferences(root / "preferences.jsonl")
    return run(REWARD, root / "reward", *reward_words(root, sft))


def test_sft_makes_an_adapter(root, base, sft):
    assert not (sft / "model.safetensors").exists()
    assert split_adapter("x", str(sft))[0] == str(base)
    found = summary(sft)
    rows = [json.loads(line) for line in (sft / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 10 and sum(losses[5:]) < sum(losses[:5])  # the second pass over the same rows
    assert found["eval_tokens"] == 53
    assert torch.allclose(peft_logits(sft), logits(load_causal(str(sft), word_tokenizer())), atol=1e-5)
    assert "library_name: peft" in (sft / "README.md").read_text()
    config = json.loads((sft / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    assert config["target_modules"] == sorted(config["target_modules"])  # peft's order is another in each process


def test_the_same_command_makes_the_same_adapter(root, base, sft):
    again = run(SFT, root / "again", *sft_words(root, base))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (sft / name).read_bytes() == (again / name).read_bytes()


def test_sft_goes_on_with_an_adapter(root, sft):
    words = ("--data", root / "pairs.jsonl", "--lora.rank", 8, "--learning_rate", 0.01, "--epochs", 1)
    more = run(SFT, root / "more", "--model", sft, *words, "--schedule", "constant")
    assert split_adapter("x", str(more))[0] == split_adapter("x", str(sft))[0]
    assert read_adapter("x", str(more)).rank == 8
    first = json.loads((more / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    before = [json.loads(line) for line in (sft / "metrics.jsonl").read_text().splitlines()]
    assert first < next(row["loss"] for row in before if "loss" in row)  # it starts where the first run ended


def test_reward_makes_an_adapter_with_a_normalised_head(root, base, reward):
    assert not (reward / "model.safetensors").exists()
    rows = [json.loads(line) for line in (root / "preferences.jsonl").read_text().splitlines()]
    judge = RewardModel.from_pretrained(reward, device="cpu")
    adapter = read_adapter("x", str(reward))
    assert adapter.base == str(base)  # the SFT adapter's base, which the policy shares
    assert torch.equal(judge.model.score.weight, adapter.head_LD)
    chosen, rejected = (judge.score([r["prompt"] for r in rows], [r[s] for r in rows]) for s in ("chosen", "rejected"))
    assert sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(rows) > 0.9
    config = RewardConfig(output_dir="x", data=str(root / "preferences.jsonl"), eval_fraction=0.3)
    trained, _ = load_preference_split(config)  # what the head is normalised on
    sides = [judge.score([p.prompt for p in trained], [getattr(p, s) for p in trained]) for s in ("chosen", "rejected")]
    scores = torch.tensor(sides, dtype=torch.float64)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-5)
    peft_model = AutoPeftModelForSequenceClassification.from_pretrained(str(reward), num_labels=1).eval()
    peft_model.config.pad_token_id = 0
    assert logits(peft_model).item() == pytest.approx(judge.score_tokens(IDS, torch.ones_like(IDS)).item(), abs=1e-5)


def test_an_interrupted_run_resumes_to_the_bit(root, base, sft, reward, tmp_path):
    """Checkpoints hold the adapter alone; what a crash left of a run after step 3 becomes the whole run again."""
    for stage, whole, words in (
        (SFT, sft, sft_words(root, base)),
        (REWARD, reward, reward_words(root, sft)),
    ):
        out = tmp_path / stage.name
        shutil.copytree(whole, out)
        (out / "provenance.json").unlink()
        (out / "adapter_model.safetensors").unlink()
        oldest, *newer = sorted((out / "checkpoints").glob("step-*"))
        assert oldest.name == "step-00000003"
        assert not list(oldest.glob("model*.safetensors"))
        for folder in newer:
            shutil.rmtree(folder)
        run(stage, out, *words)
        assert (out / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


def test_an_adapter_of_a_base_that_was_made_anew_is_refused(tmp_path):
    data = save_pairs(tmp_path / "pairs.jsonl", n=8)
    options = ("--data", data, "--batch_size", 4, "--eval_fraction", 0, "--epochs", 2)
    model = run(SFT, tmp_path / "base", "--model", save_policy(tmp_path / "policy"), *options)
    adapter = run(SFT, tmp_path / "adapter", "--model", model, *options, "--lora.rank", 2)
    read_adapter("policy", str(adapter))
    run(SFT, model, "--model", tmp_path / "policy", *options, "--seed", 1, "--overwrite")
    with pytest.raises(UserError, match=r"policy: .*its base .* has changed since the adapter was trained"):
        read_adapter("policy", str(adapter))


def test_no_adapter_is_found_where_there_is_none(root, base, tmp_path):
    assert split_adapter("x", str(base)) == (str(base), None)
    assert split_adapter("x", str(save_reward(tmp_path / "reward"))) == (str(tmp_path / "reward"), None)
    below = save_adapter(tmp_path / "reward" / "adapter", base)
    assert adapter_folder(str(tmp_path / "reward")) == str(below)


def test_peft_has_nothing_to_say_of_the_base_s_name(base, monkeypatch):
    """A relative path is recorded as an absolute one, and peft would warn that it changes that first."""
    monkeypatch.chdir(base.parent)
    model = AutoModelForCausalLM.from_pretrained(base.name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrapped = with_adapter(model, base.name, LoraOptions(rank=2), CAUSAL, 0, None)
    assert not [w for w in said if "renamed" in str(w.message)]
    assert wrapped.peft_config["default"].base_model_name_or_path == str(base.resolve())
