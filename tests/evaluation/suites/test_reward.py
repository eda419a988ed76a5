import json
import shutil

import numpy as np
import pytest
import scipy.stats
import torch

from evaluation.preferences.accuracy import duel_outcomes, outcomes
from evaluation.preferences.divergence import divergences
from evaluation.preferences.length import length_controlled_win_rate
from evaluation.resolution import resolvable_alone
from evaluation.schema import read_samples
from evaluation.scoring import completion_logprobs, score_ids
from evaluation.suites import head_to_head
from evaluation.suites.reward import STAGE
from launch.config import build
from launch.errors import UserError
from launch.provenance import fingerprint_input
from tests.evaluation import tiny
from tests.evaluation.rows import write_completions
from tests.evaluation.suites.conftest import run_suite

PROMPTS = [f"prompt {n}: " for n in range(12)]


def rewards(name, texts, ended=True):
    ids = [tiny.tokenizer()(t)["input_ids"] + ([257] if ended else []) for t in texts]
    return score_ids(tiny.reward_model({"judge": 2, "proxy": 3}[name]), ids).numpy()


@pytest.fixture
def preferences(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": p,
            "chosen": "good " * (1 + n % 3),
            "rejected": "bad answer" + "!" * (n % 5),
            "source": "ab"[n % 2] * 2,
        }
        for n, p in enumerate(PROMPTS * 2)
    ]
    rows.append({"prompt": "tie", "chosen": "x", "rejected": "y", "tie": True})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path, rows


def test_accuracy_mode(models, preferences, tmp_path):
    path, rows = preferences
    result = run_suite(STAGE, tmp_path / "out", model=models / "judge", preferences=path)
    decided = rows[:-1]
    margins = rewards("judge", [r["prompt"] + r["chosen"] for r in decided]) - rewards(
        "judge", [r["prompt"] + r["rejected"] for r in decided]
    )
    accuracy = result.metric("accuracy")
    assert accuracy.value == pytest.approx((margins > 0).mean()) and accuracy.n == 12  # prompts, each with two pairs
    assert accuracy.baseline == "taking the longer answer"
    assert result.metric("pairwise_loss").value == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-4)
    longer = [len(r["chosen"]) > len(r["rejected"]) for r in decided]
    equal = [len(r["chosen"]) == len(r["rejected"]) for r in decided]
    assert result.metric("baseline_longest").value == pytest.approx(np.mean(longer) + np.mean(equal) / 2)
    gain = (margins > 0) - (np.array(longer) + np.array(equal) / 2)
    gain = gain.reshape(2, 12).mean(0)  # each prompt is there twice
    test = scipy.stats.ttest_1samp(gain, 0)  # equal clusters: the clustered test is that of the prompts' means
    assert accuracy.comparison.difference == pytest.approx(gain.mean())
    assert accuracy.comparison.p_value == pytest.approx(test.pvalue, rel=1e-6)
    paired = scipy.stats.t.ppf([0.975, 0.8], 11).sum() * scipy.stats.sem(gain)
    assert (
        f"to taking the longer answer that these items find with a probability of 80%: accuracy {paired:.3g};"
        in result.resolution[0]
    )
    alone = resolvable_alone(accuracy)
    assert (
        f"scores scatter as much, that these items find with a probability of 80%: accuracy {alone:.3g};"
        in result.resolution[1]
    )
    assert result.metric("baseline_shortest").value == pytest.approx(1 - result.metric("baseline_longest").value)
    assert result.notes[0] == "1 pairs that people called ties are left out."
    assert [(s.group, s.name, s.metrics[0].n) for s in result.slices] == [("source", "aa", 6), ("source", "bb", 6)]
    samples = read_samples(tmp_path / "out", result.samples)
    assert [s["margin"] for s in samples] == pytest.approx(margins.tolist(), abs=1e-4)


def test_faulty_and_too_long_pairs_are_an_error_or_left_out_and_counted(models, preferences, tmp_path):
    path, rows = preferences
    context = tiny.reward_model(2).config.max_position_embeddings
    long = {"prompt": "p", "chosen": "x" * context, "rejected": "y"}
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, long]))
    with pytest.raises(UserError, match=f"row 25 has {context + 2} tokens, more than the model's context"):
        run_suite(STAGE, tmp_path / "out", model=models / "judge", preferences=path)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "p", "chosen": "same", "rejected": "same"}) + "\n")
    result = run_suite(STAGE, tmp_path / "dropped", model=models / "judge", preferences=path, invalid="drop")
    assert result.protocol.n_items == 24 and result.metric("accuracy").n == 12
    assert f"1 pairs longer than the model's context of {context} tokens are left out." in result.notes


def completions(tmp_path, name, texts, **extra):
    folder = tmp_path / name
    folder.mkdir()
    write_completions(
        folder / "completions.jsonl", [{"prompt": p, "completion": t, **extra} for p, t in zip(PROMPTS, texts)]
    )
    return folder


@pytest.fixture
def matched(tmp_path):
    ours = [f"our text {n}" + "." * n for n in range(12)]
    theirs = [f"their text {n * n}" for n in range(12)]
    return (
        completions(tmp_path, "ppo", ours, reference="a human wrote this"),
        completions(tmp_path, "sft", theirs),
        ours,
        theirs,
    )


def test_win_rate_mode(models, matched, tmp_path):
    policy, baseline, ours, theirs = matched
    result = run_suite(
        STAGE, tmp_path / "out", mode="win-rate", completions=policy, baseline=baseline, judge=models / "judge",
        proxy=models / "proxy", policy=models / "policy", reference=models / "reference", temperature=0.7,
    )  # fmt: skip
    mine = rewards("judge", [p + t for p, t in zip(PROMPTS, ours)])
    other = rewards("judge", [p + t for p, t in zip(PROMPTS, theirs)])
    win = result.metric("win_rate")
    assert win.value == pytest.approx((mine > other).mean()) and win.baseline == "sft" and win.n == 12
    even = scipy.stats.t.ppf([0.975, 0.8], 11).sum() * np.sqrt(win.value * (1 - win.value) / 12)
    assert any(
        f"to an even match that these items find with a probability of 80%: win_rate {even:.3g};" in n
        for n in result.resolution
    )
    assert any("to sft that" in n and "judge_reward" in n and "mean_length" in n for n in result.resolution)
    assert win.extra["wins"] + win.extra["losses"] + win.extra["ties"] == 12
    assert result.metric("judge_reward").value == pytest.approx(mine.mean(), abs=1e-5)
    assert result.metric("judge_reward").comparison.difference == pytest.approx((mine - other).mean(), abs=1e-5)
    human = rewards("judge", [p + "a human wrote this" for p in PROMPTS])
    assert result.metric("win_rate_against_reference").value == pytest.approx((mine > human).mean())
    proxy = rewards("proxy", [p + t for p, t in zip(PROMPTS, ours)])
    assert result.metric("proxy_reward").value == pytest.approx(proxy.mean(), abs=1e-5)
    assert result.metric("proxy_reward").extra["correlation_with_judge"] == pytest.approx(
        np.corrcoef(proxy, mine)[0, 1], abs=1e-4
    )
    ids = [tiny.tokenizer()(p)["input_ids"] for p in PROMPTS], [tiny.tokenizer()(t)["input_ids"] + [257] for t in ours]
    logprobs = [completion_logprobs(tiny.language_model(seed), *ids, temperature=0.7) for seed in (0, 1)]
    k1, k3 = divergences(*logprobs)
    assert result.metric("kl_k1").value == pytest.approx(k1.mean(), rel=1e-4)
    assert result.metric("kl_k3").value == pytest.approx(k3.mean(), rel=1e-4)
    length = result.metric("mean_length")
    assert length.value == pytest.approx(np.mean([len(t) + 1 for t in ours]))
    assert length.comparison.difference == pytest.approx(np.mean([len(a) - len(b) for a, b in zip(ours, theirs)]))
    lengths = [len(a) - len(b) for a, b in zip(ours, theirs)]
    controlled = length_controlled_win_rate(outcomes(mine - other), lengths)
    assert result.metric("win_rate_length_controlled").value == pytest.approx(controlled.value, abs=1e-4)
    assert result.metric("win_rate_by_length").value == pytest.approx(outcomes(lengths).mean())  # 19/24, not 5/24
    assert result.protocol.judge.path.endswith("judge") and result.protocol.settings["kl_temperature"] == 0.7
    rows = read_samples(tmp_path / "out", result.samples)
    assert rows[3]["completion"] == ours[3] and rows[3]["kl_k1"] == pytest.approx(k1[3], rel=1e-3)


def test_the_same_completion_is_a_tie_whatever_the_last_bits_of_its_rewards(models, tmp_path, monkeypatch):
    """Batches of other shapes round otherwise: here each reward differs in the sixth digit from the one before."""
    texts = [f"text {n}" for n in range(12)]
    policy = completions(tmp_path, "ppo", texts, reference="text 3")
    baseline = completions(tmp_path, "sft", [*texts[:10], "another", "others"])
    real = head_to_head.score_each
    calls = iter(range(9))

    def rounded(*words):
        found = real(*words)
        return found + 2.5e-6 * (np.arange(len(found)) + next(calls))

    monkeypatch.setattr(head_to_head, "score_each", rounded)
    result = run_suite(
        STAGE, tmp_path / "out", mode="win-rate", completions=policy, baseline=baseline, judge=models / "judge"
    )
    assert result.metric("win_rate").extra["ties"] == 10
    rows = read_samples(tmp_path / "out", result.samples)
    assert [row["outcome"] == 0.5 for row in rows] == [True] * 10 + [False] * 2
    assert result.metric("win_rate_against_reference").value * 12 % 1 == 0.5  # one row wrote what the person wrote


def test_an_end_and_none_are_two_answers():
    assert duel_outcomes([1.0, 1.0], [0.0, 0.0], [("a", True), ("a", True)], [("a", True), ("a", False)]).tolist() == [
        0.5,
        1.0,
    ]


def test_a_divergence_over_the_budget_is_said(models, matched, tmp_path):
    policy, baseline, _, _ = matched
    words = dict(mode="win-rate", completions=policy, baseline=baseline, judge=models / "judge", temperature=1.0)
    both = dict(policy=models / "policy", reference=models / "reference")
    generous = run_suite(STAGE, tmp_path / "generous", **words, **both, kl_budget=1e6)
    assert generous.metric("kl_k1").extra["budget"] == 1e6 and not any("budget" in n for n in generous.notes)
    middle = generous.metric("kl_k1").value
    strict = run_suite(STAGE, tmp_path / "strict", **words, **both, kl_budget=middle)  # below the upper limit
    assert f"is not within the budget of {middle:g}" in strict.notes[0] and len(strict.notes) == 1


def test_a_policy_against_itself_is_even(models, matched, tmp_path):
    policy = matched[0]
    result = run_suite(
        STAGE, tmp_path / "out", mode="win-rate", completions=policy, baseline=policy, judge=models / "judge",
        policy=models / "policy", reference=models / "policy", temperature=1.0,
    )  # fmt: skip
    win = result.metric("win_rate")
    assert (win.value, win.extra["ties"], win.comparison.p_value) == (0.5, 12, 1.0)
    assert result.metric("win_rate_length_controlled").value == pytest.approx(0.5)
    assert result.metric("kl_k1").value == 0.0 and result.metric("kl_k3").value == 0.0


def test_the_subject_is_the_model_that_wrote_the_completions(models, matched, tmp_path):
    policy, baseline = matched[:2]
    made = {
        "inputs": {"model": {"path": "runs/best", "sha256": "ab" * 32}, "prompts": {"sha256": "cd" * 32}},
        "stage": "generate",
    }
    made |= {
        "config": {"prompts": "p.jsonl", "temperature": 0.0, "seed": 5, "max_new_tokens": 32},
        "content_sha256": "ef" * 32,
    }
    (policy / "provenance.json").write_text(json.dumps(made))
    result = run_suite(
        STAGE, tmp_path / "out", mode="win-rate", completions=policy, baseline=baseline, judge=models / "judge"
    )
    assert (result.subject.name, result.subject.sha256) == ("best", "ab" * 32)
    assert (
        result.protocol.decoding == {"temperature": 0.0, "max_new_tokens": 32} and result.protocol.dataset == "p.jsonl"
    )
    with pytest.raises(UserError, match=r"drawn at temperature 0\.0; generate with a temperature above 0"):
        run_suite(
            STAGE, tmp_path / "kl", mode="win-rate", completions=policy, baseline=baseline, judge=models / "judge",
            policy=models / "policy", reference=models / "reference",
        )  # fmt: skip


def test_unfinished_completions_are_read_without_an_end(models, tmp_path):
    cut = completions(tmp_path, "cut", ["same words"] * 12, finished=False)
    whole = completions(tmp_path, "whole", ["same words"] * 12)
    result = run_suite(
        STAGE, tmp_path / "out", mode="win-rate", completions=cut, baseline=whole, judge=models / "judge"
    )
    assert result.metric("judge_reward").value == pytest.approx(
        rewards("judge", [p + "same words" for p in PROMPTS], ended=False).mean(), abs=1e-5
    )
    assert (
        result.metric("share_finished").value == 0.0 and result.metric("share_finished").comparison.difference == -1.0
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "m"}, "preferences is missing: mode accuracy needs it"),
        ({"mode": "win-rate", "completions": "c", "judge": "j"}, "baseline is missing: mode win-rate"),
        (
            {"model": "m", "preferences": "p", "judge": "j"},
            "judge: belongs to modes win-rate and best-of-n, not accuracy",
        ),
        (
            {"mode": "win-rate", "completions": "c", "baseline": "b", "judge": "j", "policy": "p"},
            "KL divergence needs both",
        ),
        (
            {"mode": "win-rate", "completions": "c", "baseline": "b", "judge": "j", "kl_budget": "5"},
            "kl_budget: KL divergence is measured with both models",
        ),
    ],
)
def test_config_checks(values, words):
    with pytest.raises(UserError, match=words):
        build(STAGE.config, values, "recipe.yaml")


def test_models_that_are_no_reward_models(models, preferences, tmp_path):
    with pytest.raises(
        UserError, match=r"lack score\.weight, it holds a Qwen3ForCausalLM, so this is no trained reward model"
    ):
        run_suite(STAGE, tmp_path / "a", model=models / "policy", preferences=preferences[0])
    two = tiny.reward_model(num_labels=2)
    two.save_pretrained(tmp_path / "two")
    tiny.tokenizer().save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match="has 2 labels, a reward model has one"):
        run_suite(STAGE, tmp_path / "b", model=tmp_path / "two", preferences=preferences[0])


def test_a_missing_input_is_named(models, matched, tmp_path):
    with pytest.raises(UserError, match=r"baseline: .*nowhere: no such file or folder"):
        run_suite(
            STAGE,
            tmp_path / "out",
            mode="win-rate",
            completions=matched[0],
            baseline=tmp_path / "nowhere",
            judge=models / "judge",
        )
    assert torch.is_grad_enabled()


def with_inputs(source, target, inputs, names="0123"):
    """A copy of a model whose provenance names these inputs."""
    shutil.copytree(source, target)
    made = {
        "inputs": {name: {"path": "x", "sha256": sha} for name, sha in zip(names, inputs, strict=False)},
        "stage": "x",
        "config": {},
    }
    (target / "provenance.json").write_text(json.dumps(made | {"content_sha256": "12" * 32}))
    return target


def test_a_judge_that_the_policy_was_trained_against_is_called_so(models, matched, tmp_path):
    policy, baseline = matched[:2]
    judge = fingerprint_input("judge", str(models / "judge"))["sha256"]
    for name, inputs, notes in [("trained", [judge], 1), ("other", ["34" * 32], 0)]:
        model = with_inputs(models / "policy", tmp_path / name, inputs)
        made = {
            "inputs": {"model": {"path": str(model), "sha256": "12" * 32}},
            "config": {},
            "stage": "generate",
            "content_sha256": "56" * 32,
        }
        (policy / "provenance.json").write_text(json.dumps(made))
        result = run_suite(
            STAGE,
            tmp_path / f"out-{name}",
            mode="win-rate",
            completions=policy,
            baseline=baseline,
            judge=models / "judge",
        )
        assert sum("trained against this judge" in note for note in result.notes) == notes


def test_a_reward_model_on_its_own_training_file_is_called_so(models, preferences, tmp_path):
    path, _ = preferences
    own = with_inputs(models / "judge", tmp_path / "own", [fingerprint_input("p", str(path))["sha256"]])
    notes = run_suite(STAGE, tmp_path / "out", model=own, preferences=path).notes
    assert any("trained with this file" in note for note in notes)


def test_a_reward_model_on_the_file_that_it_held_out_is_not(models, preferences, tmp_path):
    path, _ = preferences
    content = fingerprint_input("p", str(path))["sha256"]
    own = with_inputs(models / "judge", tmp_path / "own", [content], names=["eval_data"])
    notes = run_suite(STAGE, tmp_path / "out", model=own, preferences=path).notes
    assert not any("trained with this file" in note for note in notes)
