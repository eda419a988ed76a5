"""Rewards of single tokens in PPO: normalising, clipping and the missing-EOS rule go by an episode's whole reward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.ppo import objectives as ppo
from alignment.ppo.controllers import RewardNormaliser
from alignment.ppo.rollout import Rollout
from alignment.ppo.scoring import join_chunks
from alignment.reward.sources.combined import CombinedSource
from alignment.reward.sources.function import FunctionSource
from tests.alignment.ppo_support import TokenReward
from tests.alignment.reward_support import episodes

WEIGHT = 0.3


def by_token(completion_ids, **_):
    return [[0.1 * (1 + token % 7) / 3 for token in ids] for ids in completion_ids]


def paid_by_token(tmp_path, function=by_token, **others):
    return CombinedSource({"each": (WEIGHT, FunctionSource("each", function, "f.py:f", tmp_path)), **others})


def totals(make, source, **changes):
    """The scored rollout, with its token rewards, and the rewards of its episodes."""
    trainer = make(source, **{"kl_coef": 0.0, "critic_from": "policy", "missing_eos": "none", **changes})
    rollout = trainer.advantages(trainer.score(trainer.rollout(trainer.next_prompts())))
    return rollout, rollout.rewards_BT.sum(1)


def test_what_belongs_to_single_tokens_leaves_exactly_nothing_for_the_last(tmp_path):
    """total - sum of the tokens would leave their rounding, which looks like a reward to a normaliser."""
    source, data = paid_by_token(tmp_path), episodes()
    scores = source.score(data)
    assert scores.last_token_B.tolist() == [0, 0, 0]
    assert join_chunks([scores, scores], range(6), [3, 4, 3] * 2).last_token_B.tolist() == [0] * 6
    both = paid_by_token(tmp_path, token=(2.0, TokenReward(3))).score(data)
    assert torch.equal(both.last_token_B, 2 * TokenReward(3).score(data).total_B)
    assert both.total_B.tolist() == pytest.approx((scores.total_B + both.last_token_B).tolist(), abs=1e-6)


def test_normalised_token_rewards_are_those_over_the_deviation_of_the_totals(make, tmp_path):
    plain, plain_B = totals(make, paid_by_token(tmp_path))
    normalised, normalised_B = totals(make, paid_by_token(tmp_path), normalise_scores=True)
    assert plain_B.tolist() == pytest.approx(plain.token_scores_BT.sum(1).tolist(), abs=1e-6)
    mean, std = plain_B.mean(), plain_B.std(unbiased=False)
    assert normalised_B.tolist() == pytest.approx(((plain_B - mean) / std).tolist(), abs=1e-5)
    expected_BT = plain.token_scores_BT / std
    expected_BT[torch.arange(8), plain.mask_BT.sum(1).long() - 1] -= mean / std
    torch.testing.assert_close(normalised.rewards_BT, expected_BT, atol=1e-5, rtol=0)


def test_totals_that_differ_by_rounding_alone_are_not_blown_up(make, tmp_path):
    rewards = paid_by_token(tmp_path, lambda completion_ids: [[0.7 / len(ids)] * len(ids) for ids in completion_ids])
    _, total_B = totals(make, rewards, normalise_scores=True)
    assert total_B.abs().max() < 1e-6


def test_the_guard_of_the_normaliser_goes_by_the_size_of_the_scores():
    for size in (1.0, 1e3, 1e6):
        running = RewardNormaliser()
        scores_B = torch.tensor([0.7, 0.7, 0.7]) * size * torch.tensor([1.0, 1 + 1.2e-7, 1 - 1.2e-7])
        running.update(scores_B)
        assert running.std > 0
        assert running.normalise(scores_B, shift_mean=True).abs().max() <= 1e-6 * size
        running = RewardNormaliser()
        running.update(torch.tensor([0.7, 0.71]) * size)
        assert running.normalise(torch.tensor([0.71]) * size, shift_mean=True).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("how", ["none", "replace", "subtract"])
def test_the_missing_eos_rule_goes_for_the_whole_reward(make, tmp_path, how):
    more = {"token": (1.0, TokenReward())}
    rollout, total_B = totals(
        make,
        paid_by_token(tmp_path, **more),
        missing_eos=how,
        **({} if how == "none" else {"missing_eos_penalty": 1.5}),
    )
    cut_off = rollout.finished_B == 0
    assert 0 < cut_off.sum() < 8
    expected = {
        "none": rollout.total_scores_B,
        "replace": torch.full((8,), -1.5),
        "subtract": rollout.total_scores_B - 1.5,
    }
    wanted_B = torch.where(cut_off, expected[how], rollout.total_scores_B)
    assert total_B.tolist() == pytest.approx(wanted_B.tolist(), abs=1e-5)
    if how == "replace":  # and it is the last token's
        assert torch.equal((rollout.rewards_BT[cut_off] != 0).sum(1), torch.ones(int(cut_off.sum()), dtype=torch.long))


def test_a_clip_holds_the_whole_reward_and_keeps_who_earned_what(make, tmp_path):
    plain, plain_B = totals(make, paid_by_token(tmp_path))
    bound = float(plain_B.median())
    clipped, clipped_B = totals(make, paid_by_token(tmp_path), score_clip=bound)
    assert clipped_B.tolist() == pytest.approx(plain_B.clamp(-bound, bound).tolist(), abs=1e-6)
    share_BT = plain.rewards_BT / plain_B[:, None]
    torch.testing.assert_close(clipped.rewards_BT / clipped_B[:, None], share_BT, atol=1e-5, rtol=0)


rewards = st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=2)


@given(st.lists(rewards, min_size=2, max_size=2), rewards, st.floats(0.01, 10))
def test_clipped_totals(tokens, scores, bound):
    scores_B, tokens_BT = torch.tensor(scores), torch.tensor(tokens)
    wanted_B = (scores_B + tokens_BT.sum(1)).clamp(-bound, bound)
    clipped_B, clipped_BT = ppo.clip_totals(scores_B, tokens_BT, bound)
    torch.testing.assert_close(clipped_B + clipped_BT.sum(1), wanted_B, atol=1e-4, rtol=1e-4)
    assert torch.equal(ppo.clip_totals(scores_B, None, bound)[0], scores_B.clamp(-bound, bound))
    assert ppo.clip_totals(scores_B, tokens_BT, None)[1] is tokens_BT


def test_the_logged_score_is_the_whole_reward(make, tmp_path):
    trainer = make(paid_by_token(tmp_path, token=(2.0, TokenReward())), critic_from="policy")
    rollout = trainer.advantages(trainer.score(trainer.rollout(trainer.next_prompts())))
    metrics = trainer.log(rollout, trainer.update(rollout))
    total = WEIGHT * metrics["reward/each"] + 2 * metrics["reward/token"]
    assert metrics["reward/score"] == pytest.approx(total, abs=1e-5)
    assert metrics["reward/each"] > 0.1
    total_B = WEIGHT * rollout.components["each"] + 2 * rollout.components["token"]
    assert metrics["reward/score_std"] == pytest.approx(float(total_B.std(unbiased=False)), abs=1e-5)


def test_the_total_of_a_rollout_by_hand():
    tokens_BT = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    rollout = Rollout([], [], [], torch.ones(2, 2), torch.ones(2), scores_B=torch.tensor([0.5, -1.0]))
    assert rollout.total_scores_B.tolist() == [0.5, -1.0]
    rollout.token_scores_BT = tokens_BT
    assert rollout.total_scores_B.tolist() == [3.5, 2.0]
