"""The stage `sft`: masks, audit, lengths, held-out loss, artefact; and that the model learns to answer and to stop."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from alignment.sft import STAGE, SFTConfig
from alignment.sft.rows import IGNORE, audit_mask, expected_totals, make_rows
from data import Pair, train_tokenizer
from launch.errors import UserError
from tests.alignment.trl_support import run, save_pairs, summary, write_rows
from tests.support import WORDS, read_metrics, save_policy, word_tokenizer

PAIRS = [Pair("the of", "and to in", "a: line 1"), Pair("that", "is", "a: line 2"), Pair("a in", "", "a: line 3")]


def test_prompts_are_masked_and_eos_is_learned():
    tokenizer = word_tokenizer()
    rows, too_long = make_rows(tokenizer, PAIRS, 64)
    ids = [tokenizer.convert_tokens_to_ids(w) for w in WORDS[:5]]
    assert too_long == 0
    assert rows[0]["input_ids"] == [*ids, tokenizer.eos_token_id]
    assert rows[0]["labels"] == [IGNORE, IGNORE, *ids[2:], tokenizer.eos_token_id]
    assert rows[2]["labels"] == [IGNORE, IGNORE, tokenizer.eos_token_id]


def collator(pad_id=0):
    return DataCollatorForLanguageModeling(pad_token_id=pad_id)


def test_audit_gives_the_trained_fraction():
    rows, _ = make_rows(word_tokenizer(), PAIRS, 64)
    assert audit_mask(word_tokenizer(), rows, collator()) == pytest.approx((4 + 2 + 1) / (6 + 3 + 3))


@pytest.mark.parametrize("fault", ["prompt trained", "end masked", "row cut"])
def test_audit_sees_every_broken_mask(fault):
    tokenizer = word_tokenizer()
    rows, _ = make_rows(tokenizer, PAIRS, 64)

    def broken(part):
        batch = collator()(part)
        if fault == "prompt trained":
            batch["labels"] = batch["input_ids"]
        if fault == "end masked":  # what a collator does that masks by token id when pad is EOS
            batch["labels"][batch["labels"] == tokenizer.eos_token_id] = IGNORE
        if fault == "row cut":
            batch = {name: tensor[:, :4] for name, tensor in batch.items()}
        return batch

    with pytest.raises(RuntimeError, match="audit of the prompt mask"):
        audit_mask(tokenizer, rows, broken)


def test_audit_counts_messages_by_offsets():
    tokenizer = train_tokenizer(["def f(x): Return the value"] * 3, 300)
    chat = Pair(
        [{"role": "user", "content": "def f(x):"}], [{"role": "assistant", "content": "Return the value"}], "a: line 1"
    )
    rows, _ = make_rows(tokenizer, [chat, Pair("def", " f(x)")], 64)
    trained = [token for token in rows[0]["labels"] if token != IGNORE]
    assert tokenizer.decode(trained) == "Return the value" + tokenizer.eos_token
    assert expected_totals(tokenizer, [chat]) == (len(trained), len(rows[0]["input_ids"]))
    assert 0 < audit_mask(tokenizer, rows, collator(tokenizer.pad_token_id)) < 1


# ------------------------------------------------------------------------------------------------ the stage


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def trained(policy, tmp_path_factory):
    """A model that has learned to answer each prompt word with the next two words of the list."""
    folder = tmp_path_factory.mktemp("sft")
    rows = [
        {"prompt": w, "completion": f"{WORDS[(i + 1) % len(WORDS)]} {WORDS[(i + 2) % len(WORDS)]}"}
        for i, w in enumerate(WORDS)
    ]
    data = write_rows(folder / "pairs.jsonl", rows)
    words = ["--model", policy, "--data", data, "--eval_data", data, "--batch_size", 20, "--epochs", 60]
    return run(STAGE, folder / "out", *words, "--learning_rate", 0.02, "--eval_steps", 30), rows


def test_the_model_answers_and_stops(trained):
    folder, rows = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    right = 0
    for row in rows:
        ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        out = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
        right += out[:3] == [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
    assert right >= 0.9 * len(rows)


def test_heldout_loss_weighs_every_completion_token_alike(trained):
    folder, rows = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total = tokens = 0.0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([[*prompt, *tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]])
        logprobs = model(ids).logits.double().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        total -= float(logprobs[len(prompt) - 1 :].sum().detach())
        tokens += ids.shape[1] - len(prompt)
    found = summary(folder)
    assert found["eval_tokens"] == tokens
    assert found["eval_loss"] == pytest.approx(total / tokens, rel=1e-4)
    assert found["eval_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    logged = [row for row in read_metrics(folder) if "eval_loss" in row]
    assert [row["step"] for row in logged] == [30, 60, 60]  # in training, and of the final weights
    assert logged[0]["eval_loss"] > logged[-1]["eval_loss"] == found["eval_loss"]


def test_what_the_run_leaves(trained):
    folder, _ = trained
    found = summary(folder)
    assert found["trained_token_fraction"] == pytest.approx(3 / 4)
    assert found["steps"] == 60
    steps = [row["step"] for row in read_metrics(folder) if "loss" in row]
    assert steps == list(range(1, 61))
    assert not (folder / "training_args.bin").exists()
    assert (folder / "tokenizer.json").exists()
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 0


def test_heldout_prompts_are_not_trained_on(policy, tmp_path):
    data = save_pairs(tmp_path / "pairs.jsonl", 60)
    found = summary(run(STAGE, tmp_path / "out", "--model", policy, "--data", data, "--eval_fraction", 0.3))
    assert found["rows"] + found["eval_rows"] == 60
    assert 8 <= found["eval_rows"] <= 28  # 18 on average; 4 standard deviations of the binomial


def test_long_rows_are_left_out_counted_and_said(policy, tmp_path, capsys):
    rows = [{"prompt": "the of", "completion": "and"}, {"prompt": " ".join(["the"] * 9), "completion": "and"}]
    data = write_rows(tmp_path / "pairs.jsonl", rows * 4 + [{"prompt": "a", "completion": "of"}])
    words = ["--model", policy, "--data", data, "--eval_fraction", 0, "--max_length", 8, "--batch_size", 4]
    found = summary(run(STAGE, tmp_path / "out", *words))
    assert (found["rows"], found["rows_too_long"]) == (5, 4)
    assert "4 of 9 rows are longer than 8 tokens and were left out" in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_is_named(policy, tmp_path):
    data = write_rows(tmp_path / "pairs.jsonl", [{"prompt": " ".join(["the"] * 80), "completion": "and"}])
    with pytest.raises(UserError, match=r"pairs.jsonl: line 1: takes 82 tokens, the context holds 64"):
        run(STAGE, tmp_path / "out", "--model", policy, "--data", data, "--eval_fraction", 0)


def test_mistakes_are_one_sentence(policy, tmp_path):
    data = save_pairs(tmp_path / "pairs.jsonl", 8)
    with pytest.raises(UserError, match="micro_batch_size: 3 does not divide"):
        run(STAGE, tmp_path / "a", "--model", policy, "--data", data, "--batch_size", 8, "--micro_batch_size", 3)
    with pytest.raises(UserError, match="learning_rate: the loss is nan at step"):
        run(STAGE, tmp_path / "b", "--model", policy, "--data", data, "--learning_rate", 1e30, "--epochs", 5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x").write_text("")
    with pytest.raises(UserError, match=r"model: .*empty: could not be loaded"):
        run(STAGE, tmp_path / "c", "--model", tmp_path / "empty", "--data", data)
    with pytest.raises(ValueError, match="data is missing"):
        SFTConfig(model="m").check()
    with pytest.raises(ValueError, match="eval_steps: nothing is held out"):
        SFTConfig(model="m", data="d", eval_fraction=0, eval_steps=5).check()


def test_holding_everything_out_is_an_error(policy, tmp_path):
    data = save_pairs(tmp_path / "pairs.jsonl", 1)
    with pytest.raises(UserError, match="all 1 rows are held out"):
        run(STAGE, tmp_path / "out", "--model", policy, "--data", data, "--eval_fraction", 0.999999)


def test_pad_equal_to_eos_is_refused(policy, tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    folder = save_policy(tmp_path / "model")
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="the padding token is the eos token"):
        run(STAGE, tmp_path / "out", "--model", folder, "--data", save_pairs(tmp_path / "pairs.jsonl", 8))
