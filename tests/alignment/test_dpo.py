"""The stage `dpo`: what its numbers are, by hand from plain models; what it learns; its artefact."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.dpo import STAGE, DPOConfig
from alignment.dpo.stage import make_rows
from data import Preference
from launch.config import check_config
from tests.alignment.trl_support import run, save_preferences, summary
from tests.support import read_metrics, save_policy, word_tokenizer

BETA = 0.3


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"), attention_dropout=0.1)


@pytest.fixture(scope="module")
def trained(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo")
    data = save_preferences(folder / "train.jsonl", 96, seed=1, ties=6)
    heldout = save_preferences(folder / "eval.jsonl", 30, seed=2)
    words = ["--model", policy, "--data", data, "--eval_data", heldout, "--batch_size", 16, "--epochs", 3]
    return run(STAGE, folder / "out", *words, "--learning_rate", 2e-3, "--beta", BETA), heldout


def completion_logprob(model, tokenizer, prompt, completion):
    head = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([[*head, *tokenizer(completion)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        logprobs = model(ids).logits.double().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return float(logprobs[len(head) - 1 :].sum())


def test_heldout_numbers_are_those_of_the_plain_models(policy, trained):
    folder, heldout = trained
    tokenizer = AutoTokenizer.from_pretrained(folder)
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (folder, policy)]
    margins = []
    for row in map(json.loads, heldout.read_text().splitlines()):
        ratio = {
            side: completion_logprob(models[0], tokenizer, row["prompt"], row[side])
            - completion_logprob(models[1], tokenizer, row["prompt"], row[side])
            for side in ("chosen", "rejected")
        }
        margins.append(BETA * (ratio["chosen"] - ratio["rejected"]))
    found = summary(folder)
    assert found["eval_margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-3)
    assert found["eval_accuracy"] == pytest.approx(sum(m > 0 for m in margins) / len(margins))
    assert found["eval_loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / len(margins), rel=1e-3)


def test_it_learns_what_is_better_from_log_2(trained):
    folder, _ = trained
    rows = [row for row in read_metrics(folder) if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are one: every margin is 0
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["loss"] < 0.4
    assert rows[-1]["rewards/accuracies"] > 0.9
    assert summary(folder)["eval_accuracy"] >= 0.8  # of 30 pairs


def test_ties_are_left_out(trained):
    assert summary(trained[0])["pairs"] == 90
    pairs = [Preference("the", "a", "b", tie=True), Preference("the of", "and", "to in")]
    rows, _ = make_rows(word_tokenizer(), pairs, 64)
    assert len(rows) == 1
    assert rows[0]["rejected_ids"] == [*word_tokenizer()("to in")["input_ids"], 1]


def test_another_reference(policy, trained, tmp_path):
    other = save_policy(tmp_path / "other", seed=5)
    words = ["--model", policy, "--data", trained[1], "--reference", other, "--batch_size", 10]
    first = read_metrics(run(STAGE, tmp_path / "out", *words))[0]
    assert abs(first["loss"] - math.log(2)) > 1e-3  # ln 2 exactly where policy and reference are one model


def test_settings_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="beta: 0 is not above 0"):
        check_config(DPOConfig(model="m", data="d", beta=0))
    with pytest.raises(ValueError, match="label_smoothing: the loss ipo does not use it"):
        DPOConfig(model="m", data="d", loss="ipo", label_smoothing=0.1).check()
