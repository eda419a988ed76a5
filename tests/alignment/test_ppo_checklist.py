"""The checklist of PPO for language models, item by item: docs/ppo_checklist.md says what each is for.

Items whose test lies elsewhere are not repeated here; the page lists all of them.
"""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from alignment.generation import left_pad
from alignment.ppo import modules
from alignment.ppo import objectives as ppo
from alignment.ppo.measure import rollout_metrics
from alignment.ppo.rollout import make_batch
from alignment.prompts import fitting_prompts
from evaluation import scoring
from evaluation.trunk import states_at
from launch.runtime import Runtime
from launch.seeding import uniforms
from tests.alignment.checklist_support import (
    full_logits,
    make_trainer,
    one_update,
    passes,
    save_models,
    scored_rollout,
    take,
    weights_of,
)
from tests.alignment.ppo_support import run_updates
from tests.support import ROOT, save_policy, word_tokenizer

PAGE = (ROOT / "docs" / "ppo_checklist.md").read_text()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def make(models, runtime):
    return lambda **changes: make_trainer(models, runtime, **changes)


@pytest.fixture(scope="module")
def shared(models, runtime):
    """A trainer and its first rollout, scored and with advantages: for tests that change neither."""
    trainer = make_trainer(models, runtime)
    return trainer, trainer.advantages(scored_rollout(trainer))


@pytest.fixture(scope="module")
def base(models, runtime):
    """The metrics and the weights after one update from a rollout as it comes."""
    trainer = make_trainer(models, runtime)
    metrics = one_update(trainer)
    return metrics, weights_of(trainer)


def assert_same_update(trainer, rollout, base):
    metrics, weights = base
    for name, value in one_update(trainer, rollout).items():
        assert value == pytest.approx(metrics[name], abs=1e-5, rel=1e-4), name
    torch.testing.assert_close(weights_of(trainer), weights, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------- data and tokens


def test_item_02_generation_pads_prompts_on_the_left_passes_pad_episodes_on_the_right(shared):
    """A next token needs the prompts to end together; a causal pass needs the real tokens before the padding."""
    _, rollout = shared
    _, mask = left_pad(rollout.prompt_ids, 0, torch.device("cpu"))
    assert all(row.tolist() == sorted(row.tolist()) and row[-1] == 1 for row in mask)
    batch = make_batch(rollout, range(8), 0)
    for row, sequence in zip(batch.tokens_bS.tolist(), rollout.sequences, strict=True):
        assert row == sequence + [0] * (len(row) - len(sequence))
    for row, response in zip(rollout.mask_BT, rollout.responses, strict=True):
        assert row.tolist() == [1.0] * len(response) + [0.0] * (rollout.mask_BT.shape[1] - len(response))


def test_item_02_all_roles_read_the_token_ids_themselves(make, monkeypatch):
    trainer, seen = make(), {}
    rollout = trainer.rollout(trainer.next_prompts())
    models = {**roles_of(trainer), "judge": find_judge(trainer).model}
    role_of = {id(model.model): role for role, model in models.items()}

    def watched(trunk, tokens_bS, wanted_N):
        seen.setdefault(role_of[id(trunk)], []).append(tokens_bS)
        return states_at(trunk, tokens_bS, wanted_N)

    monkeypatch.setattr(modules, "states_of", watched)
    monkeypatch.setattr(scoring, "states_at", watched)
    trainer.score(rollout)
    assert set(seen) == {"policy", "critic", "reference", "judge"}
    for role, parts in seen.items():
        rows = [row for part in parts for row in part.tolist()]
        padded = sorted([token for token in row if token != 0] for row in rows)
        assert padded == sorted([token for token in ids if token != 0] for ids in rollout.sequences), role


def roles_of(trainer):
    return {role: getattr(trainer.roles, role) for role in ("policy", "critic", "reference")}


def find_judge(trainer):
    """The reward model within the trainer's source."""
    return next(source.judge for _, source in trainer.source.sources.values())


@pytest.mark.parametrize("filler", [0, 1, 9])
def test_item_03_content_of_padding_does_not_change_a_pass(shared, filler):
    """The padding of a pass is pad, EOS and a word in turn; positions count from 0."""
    trainer, rollout = shared
    rows = list(range(8))
    with torch.no_grad():
        found = trainer.learner.forward(make_batch(rollout, rows, filler))
    for name, values_N in zip(("logprobs_BT", "values_BT"), (found[0], found[2]), strict=True):
        torch.testing.assert_close(values_N, rollout.flat(getattr(rollout, name), rows), atol=1e-5, rtol=0)


def test_item_03_amount_of_padding_does_not_change_an_update(make, base):
    """Alone in its pass no episode is padded at all; in the base case two to eight share one."""
    trainer = make(micro_batch_size=1, forward_batch_size=1)
    trainer.room = trainer.learner.room = 1
    assert_same_update(trainer, scored_rollout(trainer), base)


def test_item_04_long_prompts_are_left_out_and_counted_never_cut():
    rows = [{"prompt": "the of and to"}, {"prompt": "the"}, {"prompt": "in a is"}]
    kept, left_out = fitting_prompts(word_tokenizer(), rows, 3)
    assert ([row["prompt_ids"] for row in kept], left_out) == ([[3], [7, 8, 9]], 1)


class OneOfTwo(Runtime):
    """The runtime as one of two ranks would see it, for a phase that exchanges nothing but shapes."""

    rank, world = 0, 2

    def gather_objects(self, value):
        return [value, value]


def test_item_05_ranks_share_the_prompts_and_never_repeat_a_sample(make, runtime):
    whole = make(prompts=[[4, 5]] * 3)  # eight episodes of equal prompts
    responses = {tuple(ids) for ids in whole.rollout(whole.next_prompts()).responses}
    assert len(responses) > 4
    trainer = make()
    prompts = trainer.next_prompts()
    expected = trainer.rollout(prompts).sequences
    found = []
    for rank in (0, 1):
        trainer.runtime = OneOfTwo(runtime.accelerator, "fp32")
        trainer.runtime.rank = rank
        found += trainer.rollout(prompts).sequences
    assert found == expected


# ---------------------------------------------------------------------------------------------- rollout


def test_items_06_07_11_a_token_is_drawn_from_the_very_distribution_of_its_old_logprob(shared):
    """The inverse of the cumulative softmax(raw logits / temperature) of the training pass, at each token's uniform number.

    Exact: any warping (top-k, top-p, a penalty, another temperature), or other positions in generation than in the
    training pass, draws other tokens.
    """
    trainer, rollout = shared
    noise = uniforms(trainer.config.seed, "ppo-rollout", 0, list(range(8)), 6)
    for row, response in enumerate(rollout.responses):
        logits = full_logits(trainer.roles.policy, rollout, row).double() / 0.7
        cumulative = np.cumsum(torch.softmax(logits, -1).numpy(), -1)
        assert (cumulative < noise[row, : len(response), None]).sum(-1).tolist() == response
        logprobs = torch.log_softmax(logits, -1)[range(len(response)), response]
        torch.testing.assert_close(
            rollout.logprobs_BT[row, : len(response)].cpu().double(), logprobs, atol=1e-5, rtol=0
        )


def test_item_07_reference_and_new_logprobs_have_the_same_temperature(shared):
    trainer, rollout = shared
    new = passes(trainer, rollout)[0]
    torch.testing.assert_close(new, rollout.logprobs_BT, atol=1e-6, rtol=0)
    for row, response in enumerate(rollout.responses):
        logits = full_logits(trainer.roles.reference, rollout, row)
        found = rollout.ref_logprobs_BT[row, : len(response)].cpu()
        tempered, plain = (torch.log_softmax(logits / t, -1)[range(len(response)), response] for t in (0.7, 1.0))
        torch.testing.assert_close(found, tempered, atol=1e-5, rtol=0)
        assert (found - plain).abs().max() > 1e-3


def test_item_08_a_response_ends_at_its_first_eos(make):
    trainer = make(batch_size=64, minibatches=1, max_new_tokens=12, temperature=1.5)
    rollout = trainer.rollout(trainer.next_prompts())
    eos = trainer.roles.tokenizer.eos_token_id
    for response, finished in zip(rollout.responses, rollout.finished_B.tolist(), strict=True):
        assert response.count(eos) == finished  # at most one, and only where it is the last
        assert (response[-1] == eos) == bool(finished)
        assert finished or len(response) == 12
    assert 0 < int(rollout.finished_B.sum()) < 64


@pytest.mark.parametrize(("how", "expected"), [("none", 3.0), ("replace", -1.5), ("subtract", 1.5)])
def test_item_09_a_missing_eos_costs_what_the_config_says(make, how, expected):
    trainer = make(missing_eos=how, kl_coef=0.0, **({} if how == "none" else {"missing_eos_penalty": 1.5}))
    rollout = scored_rollout(trainer)
    rollout.scores_B[:] = 3.0
    rollout.finished_B[:] = torch.tensor([1, 0] * 4)
    rewards = trainer.advantages(rollout).rewards_BT.sum(1)
    assert rewards.tolist() == pytest.approx([3.0, expected] * 4)
    assert trainer.sampling.eos_id == trainer.roles.tokenizer.eos_token_id


def test_item_10_no_dropout_in_rollout_or_update(models, runtime, tmp_path):
    noisy = save_policy(tmp_path, attention_dropout=0.5)
    trainer = make_trainer({**models, "policy": str(noisy)}, runtime)
    rollout = scored_rollout(trainer)
    trainer.engine.module.train()
    again = trainer.score(dataclasses.replace(rollout, logprobs_BT=None))
    assert torch.equal(again.logprobs_BT, rollout.logprobs_BT)


# ---------------------------------------------------------------------------------------------- reward and value models


def test_item_12_score_is_read_at_the_last_real_token_also_with_pad_inside_the_prompt(models, make):
    trainer = make(prompts=[[3, 0, 4], [0, 5], [6, 0, 0]], batch_size=6, minibatches=1)
    rollout = scored_rollout(trainer)
    judge = AutoModelForSequenceClassification.from_pretrained(models["reward"]).eval()
    judge.config.pad_token_id = None  # else transformers looks for the last token that is not pad
    for row, sequence in enumerate(rollout.sequences):
        with torch.no_grad():
            assert rollout.scores_B[row].item() == pytest.approx(
                float(judge(torch.tensor([sequence])).logits), abs=1e-5
            )


def test_item_16_the_critic_starts_as_the_reward_model(make):
    trainer = make()
    critic, judge = trainer.roles.critic, find_judge(trainer).model
    weights = judge.state_dict()
    assert critic.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in critic.state_dict().items())
    pairs = zip(critic.parameters(), judge.parameters(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)


# ---------------------------------------------------------------------------------------------- objective


def test_items_17_18_rewards_are_the_k1_penalty_on_every_token_and_the_score_on_the_last(shared):
    trainer, rollout = shared
    mask = rollout.mask_BT
    expected = -trainer.config.kl_coef * (rollout.logprobs_BT - rollout.ref_logprobs_BT) * mask
    expected[torch.arange(8), mask.sum(1).long() - 1] += rollout.scores_B
    torch.testing.assert_close(rollout.rewards_BT, expected, atol=1e-6, rtol=0)
    assert ((rollout.logprobs_BT - rollout.ref_logprobs_BT) * mask).min() < -0.1  # k1, not k3 or an absolute value


def test_item_18_the_logged_kl_is_positive_and_k3_never_negative(make):
    trainer = make(batch_size=64, minibatches=1)
    rollout = trainer.advantages(scored_rollout(trainer))
    metrics = rollout_metrics(rollout)
    assert metrics["kl/k1"] > 0.5 and metrics["kl/k3"] > 0.5
    k3 = ppo.kl_estimate(rollout.logprobs_BT, rollout.ref_logprobs_BT, "k3") * rollout.mask_BT
    assert k3.min() >= 0


def test_item_19_the_controller_sees_the_global_sequence_kl_and_all_episodes(make):
    trainer = make(kl_target=6.0, kl_horizon=100, kl_coef=0.15)
    rollout = trainer.advantages(scored_rollout(trainer))
    trainer.update(rollout)
    kl = ((rollout.logprobs_BT - rollout.ref_logprobs_BT) * rollout.mask_BT).sum(1).mean().item()
    error = min(max(kl / 6.0 - 1, -0.2), 0.2)
    assert trainer.kl.coef == pytest.approx(0.15 * (1 + error * 8 / 100), abs=1e-9)
    assert trainer.kl.coef != 0.15


def test_item_20_gae_runs_over_response_tokens_alone(shared):
    _, rollout = shared
    mask = rollout.mask_BT
    assert (rollout.advantages_BT[mask == 0] == 0).all() and (rollout.returns_BT[mask == 0] == 0).all()
    last = (torch.arange(8), mask.sum(1).long() - 1)
    torch.testing.assert_close(rollout.returns_BT[last], rollout.rewards_BT[last], atol=1e-6, rtol=0)  # no bootstrap


def test_item_21_rewards_are_whitened_without_shifting_their_mean_over_the_whole_batch(make):
    trainer = make(whiten_rewards=True)
    rollout = scored_rollout(trainer)
    mask = rollout.mask_BT.bool()
    plain = ppo.token_rewards(rollout.scores_B, rollout.logprobs_BT - rollout.ref_logprobs_BT, rollout.mask_BT, 0.05)[
        mask
    ]
    white = trainer.advantages(rollout).rewards_BT[mask]
    assert white.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    assert white.mean().item() == pytest.approx(plain.mean().item(), abs=1e-5)


def test_item_22_the_value_loss_starts_from_the_values_of_the_rollout(make):
    trainer = make(epochs=1, minibatches=1, learning_rate=0.0)
    rollout = trainer.advantages(scored_rollout(trainer))
    metrics = trainer.update(rollout)
    mask = rollout.mask_BT
    expected = 0.5 * ((rollout.values_BT - rollout.returns_BT) ** 2 * mask).sum() / mask.sum()
    assert metrics["critic/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["critic/clip_fraction"] == 0
    rollout.values_BT = rollout.values_BT + 1.0  # as if the critic had moved by -1 since: outside the clip of 0.2
    rollout.returns_BT = rollout.values_BT - 2.0
    assert trainer.update(rollout)["critic/clip_fraction"] == 1.0


@pytest.mark.parametrize("changes", [{"micro_batch_size": 1}, {"micro_batch_size": 8}, {"forward_batch_size": 3}])
def test_item_23_cutting_the_batch_otherwise_does_not_change_an_update(make, base, changes):
    trainer = make(**changes)
    assert_same_update(trainer, scored_rollout(trainer), base)


def test_item_23_the_order_of_the_ranks_rows_does_not_change_a_loss(make):
    """One minibatch of all episodes: their order is nothing, however unequal their lengths are."""
    found = []
    for order in (list(range(8)), [5, 2, 7, 0, 1, 3, 6, 4]):
        trainer = make(epochs=1, minibatches=1)
        found.append((one_update(trainer, take(scored_rollout(trainer), order)), weights_of(trainer)))
    for name, value in found[0][0].items():
        assert found[1][0][name] == pytest.approx(value, abs=1e-5, rel=1e-4), name
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)


def test_item_24_adam_as_openai_had_it_and_a_rate_that_falls_to_nothing(make):
    trainer = make(critic_learning_rate=5e-3)
    groups = trainer.engine.optimizer.param_groups
    assert [(g["eps"], g["weight_decay"]) for g in groups] == [(1e-5, 0.0)] * 2
    rates = [(m["train/lr"], groups[1]["lr"]) for m in run_updates(trainer)]
    assert [rate for rate, _ in rates] == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    assert groups[1]["lr"] == pytest.approx(5e-3 / 3)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_item_25_ratio_is_one_on_the_first_minibatch_at_any_temperature(make, temperature):
    trainer = make(epochs=1, minibatches=1, temperature=temperature)
    metrics = one_update(trainer)
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-11)
    assert metrics["policy/clip_fraction"] == 0
    assert metrics["policy/loss"] == pytest.approx(0, abs=1e-6)  # minus the mean of whitened advantages


def test_item_25_without_learning_nothing_moves(make):
    trainer = make(learning_rate=0.0, reference=None)
    before = weights_of(trainer)
    history = run_updates(trainer)
    assert torch.equal(weights_of(trainer), before)
    for metrics in history:
        assert abs(metrics["kl/k1"]) < 1e-5 and metrics["kl/k3"] < 1e-5 and metrics["policy/approx_kl"] < 1e-10


def test_item_26_advantages_are_whitened_once_not_by_minibatch(make):
    """A minibatch of one episode: whitened alone, a constant advantage would vanish, and nothing would be learned."""
    trainer = make(minibatches=8, epochs=1, gae_lambda=1.0, kl_coef=0.0)
    rollout = scored_rollout(trainer)
    rollout.values_BT = torch.zeros_like(rollout.values_BT)
    rollout = trainer.advantages(rollout)
    spread = (
        rollout.advantages_BT.max(1).values
        - torch.where(rollout.mask_BT.bool(), rollout.advantages_BT, torch.inf).min(1).values
    )
    assert spread.max() < 1e-5  # one number for each episode
    before = [p.detach().clone() for p in trainer.roles.policy.parameters()]
    trainer.update(rollout)
    moved = max((a - b).abs().max().item() for a, b in zip(before, trainer.roles.policy.parameters(), strict=True))
    assert moved > 1e-3


def test_item_27_what_warns_of_a_collapse_is_logged(base):
    metrics, _ = base
    assert {"kl/k1", "rollout/length", "rollout/missing_eos_rate", "policy/entropy", "reward/score"} <= set(metrics)


# ---------------------------------------------------------------------------------------------- distributed


def test_item_30_reference_and_reward_model_stand_still(make):
    trainer = make()
    judge = find_judge(trainer).model
    frozen = [*trainer.reference.parameters(), *judge.parameters()]
    before = [p.detach().clone() for p in frozen]
    run_updates(trainer)
    assert not any(p.requires_grad for p in frozen)
    assert not (trainer.reference.training or judge.training)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    trained = {id(p) for group in trainer.engine.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in frozen}


def test_item_32_metrics_of_an_update_are_sums_over_counts(make):
    """Minibatches of one episode each, of unequal lengths: a mean of their means would be another number."""
    trainer = make(minibatches=8, epochs=1, learning_rate=0.0, temperature=1.5, batch_size=16)
    rollout = trainer.advantages(scored_rollout(trainer))
    mask = rollout.mask_BT
    assert len(set(mask.sum(1).tolist())) > 1
    _, entropy, values = passes(trainer, rollout)
    metrics = trainer.update(rollout)
    assert metrics["policy/entropy"] == pytest.approx(((entropy * mask).sum() / mask.sum()).item(), abs=1e-5)
    loss = 0.5 * ((values - rollout.returns_BT) ** 2 * mask).sum() / mask.sum()
    assert metrics["critic/loss"] == pytest.approx(loss.item(), rel=1e-4)
    mean_of_means = ((entropy * mask).sum(1) / mask.sum(1)).mean().item()
    assert math.fabs(metrics["policy/entropy"] - mean_of_means) > 1e-4


def suite_names(pattern):
    """Names of the tests of the whole suite, wherever they are, that match."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return {
        name
        for path in files
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
        if re.match(pattern, name)
    }


def test_the_page_names_tests_that_exist():
    """And all tests that bear an item's or a bug's number."""
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named - suite_names("test_") == set()
    numbered = suite_names(r"test_(items?_|b)\d")
    assert len(numbered) > 40
    assert numbered - named == set()


def test_every_bug_of_others_has_a_test_named_after_it():
    """test_b7_..., or of several test_b9_b16_...; and the bug's row of the page names it."""
    rows = dict(re.findall(r"^\| B(\d+) \|(.*)$", PAGE, re.M))
    assert [int(number) for number in rows] == list(range(1, 22))
    for number, row in rows.items():
        named = suite_names(rf"test_(b\d+_)*b{number}_")
        assert any(f"`{name}`" in row for name in named), f"B{number}"


def test_the_page_names_places_that_exist():
    """`file.py` `name`, ...: each name stands in the file before it; a file without a folder is PPO's."""
    rows = [line.split("|") for line in PAGE.splitlines()]
    places = [re.findall(r"`([^`]+)`", row[4]) for row in rows if len(row) == 7 and row[1].strip().isdigit()]
    assert len(places) == 32
    for names in places:
        text = ""
        for name in names:
            if name.endswith(".py"):
                text = (ROOT / (name if "/" in name else f"alignment/ppo/{name}")).read_text()
            else:
                assert name in text, name
