"""The pairwise loss and the normalisation of a head, against closed forms and brute force."""

import math

import numpy as np
import pytest
import torch

from alignment.reward.normalise import normalise_head, smallest_shift
from alignment.reward.objective import centering_penalty, pairwise_losses
from alignment.reward.report import heldout_disturbance, heldout_report

CHOSEN, REJECTED = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 3.0])


def test_decided_pairs_cost_minus_log_sigmoid():
    expected = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(4))]
    assert pairwise_losses(CHOSEN, REJECTED).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_margin_asks_for_more():
    margin = torch.tensor([0.5, 1.0, 0.0])
    expected = [math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(1)), math.log(1 + math.exp(4))]
    assert pairwise_losses(CHOSEN, REJECTED, margin).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_tie_is_half_a_win_and_half_a_loss():
    ties = torch.tensor([True, True, False])
    both_ways = 0.5 * (pairwise_losses(CHOSEN, REJECTED) + pairwise_losses(REJECTED, CHOSEN))
    found = pairwise_losses(CHOSEN, REJECTED, torch.full((3,), 9.0), ties)
    assert found[:2].tolist() == pytest.approx(both_ways[:2].tolist(), rel=1e-6)  # the margin does not enter
    assert found[1] == pytest.approx(math.log(2))
    assert found[2] == pairwise_losses(CHOSEN, REJECTED, torch.full((3,), 9.0))[2]


def test_a_tie_pulls_the_rewards_together_and_a_decision_apart():
    chosen = torch.tensor([1.5, 1.5], requires_grad=True)
    pairwise_losses(chosen, torch.zeros(2), tie_B=torch.tensor([True, False])).sum().backward()
    sigmoid = 1 / (1 + math.exp(-1.5))
    assert chosen.grad.tolist() == pytest.approx([sigmoid - 0.5, sigmoid - 1], rel=1e-5)


def test_centering():
    assert float(centering_penalty(CHOSEN, REJECTED)) == pytest.approx((9 + 0 + 4) / 3)


# ------------------------------------------------------------------------------------------- normalisation


def features(n=400, d=12, seed=0, offset=3.0):
    draw = np.random.default_rng(seed)
    mixing = draw.normal(size=(d, d))
    return draw.normal(size=(n, d)) @ mixing + offset * draw.normal(size=d), draw.normal(size=d)


def test_rewards_get_mean_0_and_deviation_1():
    h, w = features()
    update = normalise_head(h, w)
    rewards = h @ update.weight_D
    assert abs(rewards.mean()) < 1e-12
    assert rewards.std() == pytest.approx(1, abs=1e-12)
    assert update.mean == pytest.approx((h @ w).mean())
    assert update.std == pytest.approx((h @ w).std())
    assert update.disturbance == pytest.approx((h @ update.shift_D).std() / (h @ w).std())
    assert update.weight_D * update.scale == pytest.approx(w + update.shift_D)


def test_no_other_shift_disturbs_less():
    h, w = features(n=20_000, d=5)  # so many texts that the shrinkage is nothing
    shift = smallest_shift(h, float((h @ w).mean()))
    least, mean = (h @ shift).std(), h.mean(0)
    draw = np.random.default_rng(1)
    for _ in range(200):
        other = shift + 0.1 * draw.normal(size=5)
        other -= mean * (mean @ (other - shift)) / (mean @ mean)  # back onto the constraint
        assert mean @ other == pytest.approx(mean @ shift)
        assert (h @ other).std() > least * (1 - 1e-6)


def test_closed_form_on_independent_features():
    """With covariance I, the shift is -m mu / |mu|^2 and its rewards have deviation |m| / |mu|."""
    draw = np.random.default_rng(0)
    h = draw.normal(size=(20_000, 4))
    h = (h - h.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(h.T, bias=True)).T) + np.array([1.0, 2, 0, 2])
    shift = smallest_shift(h, 6.0)
    assert shift == pytest.approx(-6.0 * np.array([1.0, 2, 0, 2]) / 9, abs=1e-6)
    assert (h @ shift).std() == pytest.approx(2.0, abs=1e-6)


def test_a_constant_feature_is_a_bias_and_the_shift_is_free():
    h, w = features(n=2000)
    h[:, 0] = 5.0
    update = normalise_head(h, w)
    assert update.disturbance < 0.02
    assert np.corrcoef(h @ w, h @ update.weight_D)[0, 1] > 0.999


def test_fewer_texts_than_features():
    h, w = features(n=10, d=64)
    rewards = h @ normalise_head(h, w).weight_D
    assert (abs(rewards.mean()), rewards.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1, abs=1e-9))


def test_normalising_twice_changes_nothing():
    h, w = features()
    once = normalise_head(h, w)
    twice = normalise_head(h, once.weight_D)
    assert twice.weight_D == pytest.approx(once.weight_D, abs=1e-12)
    assert twice.disturbance < 1e-12


def test_equal_rewards_have_no_scale():
    h, _ = features()
    with pytest.raises(ValueError, match="all 400 texts get the same reward 0"):
        normalise_head(h, np.zeros(12))


# ------------------------------------------------------------------------------------------------- report


def test_report_by_hand():
    margins, gaps = [1.0, -0.5, 2.0, 0.0], [3, 3, -1, 0]
    found = heldout_report(margins, gaps, ["a", "b", "c", "d"], seed=0)
    assert found["accuracy"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert found["longest_baseline"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert found["shortest_baseline"] == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    assert found["loss"] == pytest.approx(np.mean(np.log1p(np.exp(-np.array(margins)))))
    assert found["length_slope"] == pytest.approx((3 - 1.5 - 2) / (9 + 9 + 1))
    assert found["margin_mean"] == pytest.approx(0.625)
    assert found["eval_pairs"] == 4


def test_intervals_are_wilson_for_independent_pairs():
    found = heldout_report([1.0] * 8 + [-1.0] * 2, range(1, 11), [str(i) for i in range(10)], seed=0)
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_pairs_of_one_prompt_are_not_independent():
    apart = heldout_report([1.0, 1, -1, -1] * 10, range(40), [str(i) for i in range(40)], seed=0)
    together = heldout_report([1.0, 1, -1, -1] * 10, range(40), [str(i // 2) for i in range(40)], seed=0)
    width = [found["accuracy_high"] - found["accuracy_low"] for found in (apart, together)]
    assert width[1] > 1.3 * width[0]


def test_repeated_pairs_of_a_prompt_narrow_no_interval():
    margins, gaps, prompts = [1.0, 2, -1, -0.5, 0.3, -2, 1.5, 0.7], [3.0, -1, 2, 4, -3, 1, 5, -2], list("abcdefgh")
    once = heldout_report(margins, gaps, prompts, seed=0)
    five = heldout_report(margins * 5, gaps * 5, prompts * 5, seed=0)
    for name in ("ece", "length_slope", "loss"):
        width = [found[f"{name}_high"] - found[f"{name}_low"] for found in (once, five)]
        assert width[1] == pytest.approx(width[0])


def test_disturbance_on_heldout_pairs():
    h, w = features()
    update = normalise_head(h, w)
    gap = h[:100] - h[100:200]
    found = heldout_disturbance(update, gap, w)
    after = gap @ (update.weight_D * update.scale)
    assert found["disturbance_heldout"] == pytest.approx((after - gap @ w).std() / (gap @ w).std())
    assert found["accuracy_change"] == pytest.approx((after > 0).mean() - (gap @ w > 0).mean())
    assert heldout_disturbance(update, gap[:0], w) == {}
    assert heldout_disturbance(update, gap[:1], w).keys() == {"accuracy_change"}  # one margin has no deviation
