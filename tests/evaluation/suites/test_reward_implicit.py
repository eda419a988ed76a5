"""`evaluate reward --mode implicit`: a policy's rewards against its reference, beside log-probabilities by transformers."""

import json

import numpy as np
import pytest
import torch
from scipy.special import expit
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.schema import read_samples
from evaluation.suites.reward import STAGE
from launch.config import build
from launch.errors import UserError
from tests.evaluation import tiny
from tests.evaluation.suites.conftest import run_suite
from tests.support import save_policy


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"p{n}: ", "chosen": "good " * (1 + n % 3), "rejected": "bad" + "!" * (n % 5), "source": "ab"[n % 2]}
        for n in range(24)
    ]
    rows.append({"prompt": "tie", "chosen": "x", "rejected": "y", "tie": True})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path, rows[:-1]


def logprob(folder, prompt, answer):
    """log p(answer and its end | prompt) of one row, by transformers' own forward pass."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    head, tail = tokenizer(prompt)["input_ids"], [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(head) - 1 + i, token]) for i, token in enumerate(tail))


def words(models, path, **more):
    both = {"policy": models / "policy", "reference": models / "reference"}
    return {"mode": "implicit", **both, "preferences": path, **more}


def test_rewards_are_those_of_transformers(models, pairs, tmp_path):
    path, rows = pairs
    result = run_suite(STAGE, tmp_path / "out", **words(models, path, beta=0.3))
    samples = read_samples(tmp_path / "out", result.samples)
    for row, sample in zip(rows, samples, strict=True):
        for side in ("chosen", "rejected"):
            ours, theirs = (logprob(models / m, row["prompt"], row[side]) for m in ("policy", "reference"))
            assert sample[f"reward_{side}"] == pytest.approx(0.3 * (ours - theirs), abs=1e-4)
    margins = np.array([s["margin"] for s in samples])
    assert result.metric("accuracy").value == pytest.approx((margins > 0).mean())
    assert result.metric("brier_score").value == pytest.approx(np.mean((1 - expit(margins)) ** 2), rel=1e-6)
    confident, right = expit(np.abs(margins)), margins > 0
    bins = np.minimum((confident * 10).astype(int), 9)
    ece = sum(abs(right[bins == b].mean() - confident[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    assert result.metric("calibration_error").extra["plug_in"] == pytest.approx(ece, abs=1e-6)
    lengths = np.array([len(r["chosen"]) - len(r["rejected"]) for r in rows])
    slope = 100 * (margins @ lengths) / (lengths @ lengths)
    assert result.metric("length_slope").value == pytest.approx(slope, rel=1e-4)
    assert {s.name for s in result.slices} == {"a", "b"} and result.slices[0].metrics[0].n == 12
    assert "with beta 0.3 and the reference reference" in result.notes[0]
    assert any("called ties are left out" in note for note in result.notes)


def test_it_stands_beside_a_reward_model_on_the_same_pairs(models, pairs, tmp_path):
    path, _ = pairs
    implied = run_suite(STAGE, tmp_path / "implied", **words(models, path))
    trained = run_suite(STAGE, tmp_path / "trained", model=models / "judge", preferences=path)
    assert implied.protocol == trained.protocol and implied.suite == trained.suite
    names = [m.name for m in trained.metrics]
    assert [m.name for m in implied.metrics] == names and "calibration_error" in names and "length_slope" in names
    assert (implied.subject.name, implied.subject.kind) == ("policy (implicit)", "reward model")
    other = run_suite(STAGE, tmp_path / "beta", **words(models, path, beta=0.2))
    assert other.subject.sha256 != implied.subject.sha256 and set(implied.subject.parents) == {"policy", "reference"}
    assert other.metric("accuracy").value == implied.metric("accuracy").value
    assert other.metric("mean_margin").value == pytest.approx(2 * implied.metric("mean_margin").value)


def test_a_policy_against_itself_ties_every_pair(models, pairs, tmp_path):
    path, _ = pairs
    same = words(models, path) | {"reference": models / "policy"}
    half, wrong = (run_suite(STAGE, tmp_path / ties, **same, ties=ties) for ties in ("half", "wrong"))
    assert (half.metric("accuracy").value, half.metric("accuracy").extra["tied_pairs"]) == (0.5, 24)
    assert wrong.metric("accuracy").value == 0


def test_beta_is_that_of_the_training(models, pairs, tmp_path):
    for model in (tiny.language_model(0),):
        model.save_pretrained(tmp_path / "dpo")
        tiny.tokenizer().save_pretrained(tmp_path / "dpo")
    made = {"config": {"beta": 0.7}, "stage": "dpo", "inputs": {}, "content_sha256": "ab" * 32}
    (tmp_path / "dpo" / "provenance.json").write_text(json.dumps(made))
    result = run_suite(STAGE, tmp_path / "out", **words(models, pairs[0]) | {"policy": tmp_path / "dpo"})
    assert "with beta 0.7 " in result.notes[0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mode": "implicit", "policy": "p", "preferences": "d"}, "reference is missing: mode implicit needs it"),
        ({"mode": "implicit", "reference": "r", "preferences": "d"}, "policy is missing: mode implicit needs it"),
        ({"policy": "p", "reference": "r", "preferences": "d"}, "policy: belongs to modes implicit and win-rate, not"),
        ({"model": "m", "preferences": "d", "beta": "1"}, "beta: belongs to mode implicit, not accuracy"),
        (
            {"mode": "implicit", "policy": "p", "reference": "r", "preferences": "d", "model": "m"},
            "model: belongs to modes accuracy and candidates, not implicit",
        ),
    ],
)
def test_config_checks(values, said):
    with pytest.raises(UserError, match=said):
        build(STAGE.config, values, "recipe.yaml")


def test_models_of_two_vocabularies_are_refused(models, pairs, tmp_path):
    save_policy(tmp_path / "words")
    both = words(models, pairs[0]) | {"reference": tmp_path / "words"}
    with pytest.raises(
        UserError, match=r"^reference: .*words has another vocabulary .*\(23 and 258 tokens; .* differs\)"
    ):
        run_suite(STAGE, tmp_path / "out", **both)


def test_a_reward_model_is_no_policy(models, pairs, tmp_path):
    both = words(models, pairs[0]) | {"policy": models / "judge"}
    with pytest.raises(
        UserError, match=r"^policy: .*judge: the weights lack lm_head\.weight, .* no trained language model"
    ):
        run_suite(STAGE, tmp_path / "out", **both)
