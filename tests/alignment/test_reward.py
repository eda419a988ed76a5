"""The stage `reward`: head, rows, what it learns, and the normalisation as a plain program sees it."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment.reward import STAGE
from alignment.reward.head import init_head, load_scorer
from alignment.reward.model import RewardModel
from alignment.reward.trainer import make_rows
from data import Preference, load_preferences
from launch.errors import UserError
from launch.seeding import torch_generator
from tests.alignment.trl_support import BAD, GOOD, run, save_preferences, summary, weights_sha, write_rows
from tests.support import read_metrics, save_policy, word_tokenizer


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"), attention_dropout=0.1)


def test_head_is_drawn_from_the_normal_of_deviation_one_over_root_d_plus_one():
    weight = torch.nn.Parameter(torch.zeros(1, 10_000))
    init_head(weight, seed=7)
    expected = torch.randn(1, 10_000, generator=torch_generator(7, "reward/head")) / math.sqrt(10_001)
    assert torch.equal(weight.data, expected)
    assert float(weight.data.std()) == pytest.approx(1 / math.sqrt(10_001), rel=0.03)


def test_scorer_starts_from_the_policy(policy):
    model = load_scorer(str(policy), word_tokenizer(), seed=0)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == 0
    drawn = torch.randn(1, 16, generator=torch_generator(0, "reward/head")) / math.sqrt(17)
    assert torch.equal(model.score.weight, drawn)  # the head of this seed and width, and nothing done to it since
    again = load_scorer(str(policy), word_tokenizer(), seed=0)
    assert torch.equal(model.score.weight, again.score.weight)
    body = dict(AutoModelForCausalLM.from_pretrained(policy).model.named_parameters())
    assert all(torch.equal(value, body[name]) for name, value in model.model.named_parameters())


def test_dropout_is_off_in_attention_too(policy):
    ids = torch.arange(4, 14)[None]
    undisturbed = load_scorer(str(policy), word_tokenizer(), seed=0).train()
    assert torch.equal(undisturbed(ids).logits, undisturbed(ids).logits)
    with_dropout = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1).train()
    assert not torch.equal(with_dropout(ids).logits, with_dropout(ids).logits)


def test_rows_are_prompt_answer_and_eos_with_margins_and_ties():
    pairs = [
        Preference("the of", "and", "to in", strength=3.0, origin="a: 1"),
        Preference("a", "is", "that it", tie=True, origin="a: 2"),
        Preference("the", "is " * 9, "a", origin="a: 3"),
    ]
    rows, too_long = make_rows(word_tokenizer(), pairs, 8, margin_per_strength=0.5)
    assert too_long == 1
    assert [row["margin"] for row in rows] == [1.5, 0.0]
    assert [row["tie"] for row in rows] == [False, True]
    ids = word_tokenizer()("the of to in")["input_ids"]
    assert rows[0]["rejected_ids"] == [*ids, 1]


# ------------------------------------------------------------------------------------------------- the stage


@pytest.fixture(scope="module")
def trained(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    data = save_preferences(folder / "train.jsonl", 160, seed=1, ties=8)
    heldout = save_preferences(folder / "eval.jsonl", 60, seed=2, ties=5)
    words = ["--model", policy, "--data", data, "--eval_data", heldout, "--batch_size", 16, "--epochs", 3]
    return run(STAGE, folder / "out", *words, "--learning_rate", 5e-3, "--eval_steps", 10), data, heldout


def plain_scores(folder, rows, side):
    """What a program without alignkit computes."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [f"{row['prompt']} {row[side]} {tokenizer.eos_token}" for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**batch).logits[:, 0].double().numpy()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_learns_what_is_better(trained):
    folder, _, heldout = trained
    found = summary(folder)
    assert found["accuracy"] >= 0.95
    assert found["eval_pairs"] == 55
    assert found["eval_ties"] == 5
    assert found["accuracy_low"] > 0.8
    assert abs(found["longest_baseline"] - 0.5) < 0.2
    rows = [row for row in read(heldout) if not row["tie"]]
    gap = plain_scores(folder, rows, "chosen") - plain_scores(folder, rows, "rejected")
    assert (gap > 0).mean() == pytest.approx(found["accuracy"], abs=1e-9)
    assert np.log1p(np.exp(-gap * found["logit_per_reward"])).mean() == pytest.approx(found["loss"], rel=1e-4)


def test_training_texts_have_mean_0_and_deviation_1_in_plain_transformers(trained):
    folder, data, _ = trained
    scores = np.concatenate([plain_scores(folder, read(data), side) for side in ("chosen", "rejected")])
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std() == pytest.approx(1, abs=1e-5)
    found = summary(folder)
    assert found["calibration_texts"] == 320
    assert abs(found["mean_before"]) + abs(found["std_before"] - 1) > 0.05  # it was not so before


def test_metrics_by_step(trained):
    folder, _, _ = trained
    rows = [row for row in read_metrics(folder) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert rows[-1]["accuracy"] > 0.9
    assert rows[-1]["margin"] > 1
    evals = [row for row in read_metrics(folder) if "eval_accuracy" in row]
    assert [row["step"] for row in evals] == [10, 20, 30]
    assert evals[-1]["eval_accuracy"] >= 0.9  # the same pairs, before the shift of the head


def test_the_first_loss_is_that_of_the_pairs_before_any_update(policy, tmp_path):
    """One batch holds all pairs, so its loss can be found by hand: -log sigmoid of the difference, a tie half each way."""
    data = save_preferences(tmp_path / "train.jsonl", 24, seed=3, ties=5)
    words = ["--model", policy, "--data", data, "--batch_size", 24, "--epochs", 1, "--eval_fraction", 0]
    rows, pairs = read_metrics(run(STAGE, tmp_path / "out", *words)), load_preferences(data)
    scorer = RewardModel(load_scorer(str(policy), word_tokenizer(), seed=0).eval(), word_tokenizer())
    chosen, rejected = (
        np.array(scorer.score([p.prompt for p in pairs], [getattr(p, side) for p in pairs]))
        for side in ("chosen", "rejected")
    )
    difference = chosen - rejected
    lost = np.log1p(np.exp(-difference))
    lost = np.where([p.tie for p in pairs], (lost + np.log1p(np.exp(difference))) / 2, lost)
    centering = 0.01 * np.square(chosen + rejected).mean()  # by default
    assert rows[0]["loss"] == pytest.approx(lost.mean() + centering, rel=1e-5)
    assert rows[0]["margin"] == pytest.approx(difference.mean(), abs=1e-5)
    assert rows[0]["accuracy"] == pytest.approx((difference > 0)[[not p.tie for p in pairs]].mean())


def test_calibration_on_completions(policy, trained, tmp_path):
    _, data, heldout = trained
    rows = [
        {
            "id": i, "prompt": row["prompt"], "completion": row["rejected"], "finished": True, "prompt_ids": [],
            "completion_ids": [], "reference": None,
        }
        for i, row in enumerate(read(heldout))
    ]  # fmt: skip
    completions = write_rows(tmp_path / "completions.jsonl", rows)
    words = ["--model", policy, "--data", data, "--batch_size", 16, "--normalise_on", completions]
    folder = run(STAGE, tmp_path / "out", *words, "--learning_rate", 5e-3)
    scores = RewardModel.from_pretrained(folder).score([r["prompt"] for r in rows], [r["completion"] for r in rows])
    assert np.mean(scores) == pytest.approx(0, abs=1e-5)
    assert np.std(scores) == pytest.approx(1, abs=1e-5)


def test_normalisation_can_be_left_out(policy, trained, tmp_path):
    _, data, _ = trained
    words = ["--model", policy, "--data", data, "--batch_size", 16]
    plain = run(STAGE, tmp_path / "plain", *words, "--normalise", "false")
    assert "disturbance" not in summary(plain)
    assert summary(run(STAGE, tmp_path / "normal", *words))["pairs"] == summary(plain)["pairs"]
    assert weights_sha(plain) != weights_sha(tmp_path / "normal")


def test_one_class_only_is_an_error(policy, tmp_path):
    rows = [{"prompt": "the", "chosen": GOOD[i], "rejected": BAD[i], "tie": True} for i in range(6)]
    with pytest.raises(UserError, match="one class only"):
        run(STAGE, tmp_path / "out", "--model", policy, "--data", write_rows(tmp_path / "ties.jsonl", rows))


def test_rewards_in_training_keep_float32_under_autocast(policy):
    model = load_scorer(str(policy), word_tokenizer(), seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randint(3, 23, (40, 9))).logits
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).sum() > 30


def test_training_and_scoring_see_the_same_tokens(trained):
    folder, data, _ = trained
    scorer, pairs = RewardModel.from_pretrained(folder), load_preferences(data)
    rows, _ = make_rows(scorer.tokenizer, pairs, 64, 0.0)
    assert [row["chosen_ids"] for row in rows] == scorer.encode([p.prompt for p in pairs], [p.chosen for p in pairs])
