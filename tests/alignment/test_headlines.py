"""Each stage of a small model's life says its main numbers before it is done."""

import re

import pytest

from alignment import dpo, generate, ppo, preferences, reward, sft
from alignment.ppo.best import BestPolicy
from tests.alignment.trl_support import run, save_pairs, save_preferences, summary
from tests.support import save_policy, save_prompts, save_reward


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"))


def said(capsys):
    """The lines before `done in`, without the stage's name."""
    *lines, done = [re.sub(r"^\[.*?\] ", "", line) for line in capsys.readouterr().err.splitlines()]
    assert done.startswith("done in")
    return lines


def test_sft(policy, tmp_path, capsys):
    words = ["--model", policy, "--data", save_pairs(tmp_path / "pairs.jsonl"), "--eval_fraction", 0.3]
    found = summary(run(sft.STAGE, tmp_path / "out", *words))
    assert said(capsys)[-2:] == [
        f"trained on {found['rows']} rows, {found['steps']} steps",
        f"held out: loss {found['eval_loss']:.4g} nats per token, perplexity {found['eval_perplexity']:.4g} "
        f"({found['eval_rows']} rows)",
    ]


def test_sft_that_holds_nothing_out(policy, tmp_path, capsys):
    words = ["--model", policy, "--data", save_pairs(tmp_path / "pairs.jsonl"), "--eval_fraction", 0]
    run(sft.STAGE, tmp_path / "out", *words)
    lines = said(capsys)
    assert lines[-1].startswith("trained on 48 rows") and not any("held out" in line for line in lines)


def test_reward(policy, tmp_path, capsys):
    words = ["--model", policy, "--data", save_preferences(tmp_path / "p.jsonl"), "--eval_fraction", 0.3]
    found = summary(run(reward.STAGE, tmp_path / "out", *words))
    low, high = found["accuracy_low"], found["accuracy_high"]
    start = f"held out: accuracy {found['accuracy']:.4g} [{low:.4g}, {high:.4g}] on {found['eval_pairs']} pairs"
    assert said(capsys)[-1].startswith(start)


def test_dpo(policy, tmp_path, capsys):
    words = ["--model", policy, "--data", save_preferences(tmp_path / "p.jsonl"), "--eval_fraction", 0.3]
    found = summary(run(dpo.STAGE, tmp_path / "out", *words))
    assert f"{found['eval_pairs']} pairs, mean margin {found['eval_margin']:.4g}" in said(capsys)[-1]


def test_generate_and_preferences(policy, tmp_path, capsys):
    source = save_pairs(tmp_path / "pairs.jsonl")
    words = ["--model", policy, "--prompts", source, "--max_new_tokens", 8, "--samples", 2]
    run(generate.STAGE, tmp_path / "made", *words)
    last = said(capsys)[-1]
    assert last.startswith("96 completions of ") and last.endswith(f": {tmp_path / 'made' / 'completions.jsonl'}")
    words = ["--completions", tmp_path / "made", "--judge", "reference", "--unfinished", "keep"]
    found = summary(run(preferences.STAGE, tmp_path / "pairs", *words))
    last = said(capsys)[-1]
    assert last.startswith(f"{found['pairs']} pairs of {found['prompts']} prompts, a share of ")
    assert last.endswith(f": {tmp_path / 'pairs' / 'preferences.jsonl'}")


@pytest.fixture(scope="module")
def ppo_words(policy, tmp_path_factory):
    root = tmp_path_factory.mktemp("ppo")
    prompts, held_out = save_prompts(root / "prompts.jsonl", n=5), save_prompts(root / "held_out.jsonl", seed=5)
    sources = ["--policy", policy, "--reward", save_reward(root / "reward"), "--prompts", prompts]
    sizes = ["--batch_size", 8, "--minibatches", 1, "--micro_batch_size", 4, "--max_new_tokens", 4, "--updates", 1]
    return [*sources, *sizes], ["--evaluation.every", 1, "--evaluation.prompts", held_out, "--evaluation.limit", 6]


def test_ppo_says_whose_policy_is_the_best(ppo_words, tmp_path, capsys):
    words, evaluation = ppo_words
    found = summary(run(ppo.STAGE, tmp_path / "out", *words, *evaluation, "--learning_rate", 1e-12))
    rollout, best = said(capsys)[-2:]
    assert rollout.startswith(f"after update 1: mean reward {found['reward/score']:.4g}, KL to the reference ")
    assert found["best/step"] == 0  # nothing was learned, and of equals the earlier one is kept
    assert best.startswith("best/ holds the START policy (step 0)") and "proxy reward" in best


def test_ppo_says_that_no_policy_was_within_the_budget(tmp_path, runtime):
    best = BestPolicy(tmp_path / "best", 0.5, runtime, lambda folder: None)
    assert best.summary() == {"best/choice": "nothing: there was no evaluation with a KL within 0.5 nats"}


def test_ppo_without_evaluations_says_nothing_of_the_best(ppo_words, tmp_path, capsys):
    run(ppo.STAGE, tmp_path / "out", *ppo_words[0])
    lines = said(capsys)
    assert "batch_size: a rollout takes 8 prompts, there are 5: each is used about 1.6 times in every rollout" in lines
    assert not any("best/" in line for line in lines) and lines[-1].startswith("after update 1: mean reward")
