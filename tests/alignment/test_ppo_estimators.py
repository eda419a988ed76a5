"""Advantage estimators: against double sums, by hand, against one another, and under changes that must not matter."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.ppo.estimators import (
    ESTIMATORS,
    EstimatorName,
    EstimatorSettings,
    check_samples,
    discounted_returns,
    estimate_advantages,
    length_adaptive_lambda,
)
from alignment.ppo.objectives import masked_whiten

NAMES = sorted(ESTIMATORS)
cases = dict(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), lam=st.floats(0, 1))


def make_case(seed, prompts=3, samples=4, t=7):
    """Rewards, values, mask and groups of prompts x samples episodes in a mixed order; prompt ids are not 0, 1, 2."""
    generator = torch.Generator().manual_seed(seed)
    b = prompts * samples
    rewards, values = (torch.randn(b, t, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.randint(1, t + 1, (b,), generator=generator)
    mask = (torch.arange(t) < lengths[:, None]).double()
    groups = (torch.arange(b) % prompts * 17 + 5)[torch.randperm(b, generator=generator)]
    return rewards, values, mask, groups


def double_sum(name, rewards, values, mask, groups, chosen):
    """Every estimator by its definition, with loops, before whitening: advantages and returns."""
    lengths = mask.sum(1).int().tolist()
    totals = [float(rewards[b, :n].sum()) for b, n in enumerate(lengths)]
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for b, n in enumerate(lengths):
        mates = [totals[c] for c in range(len(totals)) if groups[c] == groups[b]]
        others = [totals[c] for c in range(len(totals)) if groups[c] == groups[b] and c != b]
        mean = sum(mates) / len(mates)
        std = math.sqrt(sum((x - mean) ** 2 for x in mates) / (len(mates) - 1))
        lam = chosen.lam if chosen.length_alpha is None else max(0.0, 1 - 1 / (chosen.length_alpha * n))
        value_lam = lam if chosen.value_lam is None else chosen.value_lam

        def td(t, k):
            following = values[b, k + 1] if k + 1 < n else 0.0
            return rewards[b, k] + chosen.gamma * following - values[b, k]

        for t in range(n):
            to_go = sum(chosen.gamma ** (k - t) * rewards[b, k] for k in range(t, n))
            advantages[b, t] = {
                "gae": lambda: sum((chosen.gamma * lam) ** (k - t) * td(t, k) for k in range(t, n)),
                "grpo": lambda: (totals[b] - mean) / (std + 1e-4 if chosen.group_std else 1),
                "rloo": lambda: totals[b] - sum(others) / len(others),
                "reinforce++": lambda: to_go,
                "reinforce++-baseline": lambda: to_go - chosen.gamma ** (n - 1 - t) * mean,
            }[name]()
            returns[b, t] = values[b, t] + sum((chosen.gamma * value_lam) ** (k - t) * td(t, k) for k in range(t, n))
    return advantages, returns


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", [{}, {"group_std": False}, {"length_alpha": 0.4}, {"value_lam": 1.0}])
@settings(max_examples=8, deadline=None)
@given(**cases)
def test_each_equals_its_double_sum(name, option, seed, gamma, lam):
    case, chosen = make_case(seed), EstimatorSettings(gamma, lam, **option)
    advantages, returns = ESTIMATORS[name].compute(*case, chosen)
    expected, expected_returns = double_sum(name, *case, chosen)
    torch.testing.assert_close(advantages, expected, atol=1e-10, rtol=0)
    if ESTIMATORS[name].needs_critic:
        torch.testing.assert_close(returns, expected_returns, atol=1e-10, rtol=0)
    else:
        assert returns is None


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(**cases, extra=st.integers(0, 4), junk=st.sampled_from([0.0, 99.0, float("nan"), float("inf")]))
def test_padding_is_without_meaning_in_amount_and_content(name, seed, gamma, lam, extra, junk):
    rewards, values, mask, groups = make_case(seed)
    chosen = EstimatorSettings(gamma, lam)
    plain, plain_returns = estimate_advantages(name, rewards * mask, values * mask, mask, groups, chosen)
    wide = torch.nn.functional.pad
    spoilt = [wide(x, (0, extra)).masked_fill(wide(mask, (0, extra)) == 0, junk) for x in (rewards, values)]
    advantages, returns = estimate_advantages(name, *spoilt, wide(mask, (0, extra)), groups, chosen)
    torch.testing.assert_close(advantages, wide(plain, (0, extra)), atol=1e-12, rtol=0)
    if plain_returns is not None:
        torch.testing.assert_close(returns, wide(plain_returns, (0, extra)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(**cases)
def test_the_order_of_episodes_and_the_names_of_prompts_do_not_matter(name, seed, gamma, lam):
    rewards, values, mask, groups = make_case(seed)
    chosen = EstimatorSettings(gamma, lam)
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed + 1))
    plain, _ = estimate_advantages(name, rewards, values, mask, groups, chosen)
    moved, _ = estimate_advantages(name, rewards[order], values[order], mask[order], 12 * groups[order], chosen)
    torch.testing.assert_close(moved, plain[order], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", [n for n in NAMES if ESTIMATORS[n].needs_groups])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-5, 5))
def test_a_prompt_that_pays_more_gains_nothing(name, seed, shift):
    """A constant added to the score of all samples of one prompt, on the last token: the baseline takes it off."""
    rewards, values, mask, groups = make_case(seed)
    richer = rewards.clone()
    rows = (groups == groups[0]).nonzero()[:, 0]
    richer[rows, mask[rows].sum(1).long() - 1] += shift
    plain, _ = estimate_advantages(name, rewards, values, mask, groups, EstimatorSettings())
    other, _ = estimate_advantages(name, richer, values, mask, groups, EstimatorSettings())
    torch.testing.assert_close(other, plain, atol=1e-9, rtol=0)


# ---------------------------------------------------------------------------------------------- by hand


SCORES = torch.tensor([[0.0, 3.0], [0.0, 1.0], [7.0, 0.0], [5.0, 0.0]])  # two prompts, two samples each
HAND_MASK = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
HAND_GROUPS = torch.tensor([4, 4, 2, 2])


@pytest.mark.parametrize(
    ("name", "option", "expected"),
    [
        ("rloo", {}, [[2, 2], [-2, -2], [2, 0], [-2, 0]]),
        ("grpo", {"group_std": False}, [[1, 1], [-1, -1], [1, 0], [-1, 0]]),
        # the sample deviation of two numbers 2 apart is sqrt 2
        ("grpo", {}, [[0.7071, 0.7071], [-0.7071, -0.7071], [0.7071, 0], [-0.7071, 0]]),
        # tokens 1, 1, -1, -1, 1, -1 have mean 0 and deviation 1
        ("reinforce++-baseline", {}, [[1, 1], [-1, -1], [1, 0], [-1, 0]]),
        # tokens 3, 3, 1, 1, 7, 5: mean 10/3, deviation sqrt(94/6 - 100/9)
        (
            "reinforce++",
            {},
            [[-0.1562, -0.1562], [-1.0933, -1.0933], [1.7180, 0], [0.7809, 0]],
        ),
    ],
)
def test_by_hand(name, option, expected):
    advantages, _ = estimate_advantages(name, SCORES, None, HAND_MASK, HAND_GROUPS, EstimatorSettings(**option))
    torch.testing.assert_close(advantages, torch.tensor(expected).float(), atol=1e-4, rtol=0)


def test_gae_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.4, 0.5]])
    chosen = EstimatorSettings(gamma=1.0, lam=0.5)
    advantages, returns = ESTIMATORS["gae"].compute(rewards, values, torch.ones(1, 3), torch.tensor([0]), chosen)
    # TD errors 0.2, 0.1, 0.5: A = 0.2 + 0.5 (0.1 + 0.5 * 0.5), 0.1 + 0.5 * 0.5, 0.5
    torch.testing.assert_close(advantages, torch.tensor([[0.375, 0.35, 0.5]]))
    torch.testing.assert_close(returns, torch.tensor([[0.575, 0.75, 1.0]]))


def test_discount_by_hand():
    returns = discounted_returns(torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3), 0.5)
    assert returns.tolist() == [[3.0, 4.0, 4.0]]


def test_length_adaptive_lambda_by_hand():
    lam = length_adaptive_lambda(torch.tensor([[1.0] * 100, [1.0] * 40 + [0.0] * 60, [1.0] * 10 + [0.0] * 90]), 0.05)
    torch.testing.assert_close(lam, torch.tensor([0.8, 0.5, 0.0]))  # 10 tokens would give -1


# ---------------------------------------------------------------------------------------------- against one another


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), samples=st.integers(2, 6))
def test_rloo_is_dr_grpo_times_g_over_g_minus_one(seed, samples):
    case = make_case(seed, samples=samples)
    rloo, _ = estimate_advantages("rloo", *case, EstimatorSettings())
    grpo, _ = estimate_advantages("grpo", *case, EstimatorSettings(group_std=False))
    torch.testing.assert_close(rloo, grpo * samples / (samples - 1), atol=1e-12, rtol=0)


@settings(max_examples=25, deadline=None)
@given(**cases)
def test_equalities_between_estimators(seed, gamma, lam):
    rewards, values, mask, groups = make_case(seed)
    to_go = discounted_returns(rewards, mask, gamma)
    # lambda 1: discounted return less the value; the critic's target is the return itself
    advantages, returns = ESTIMATORS["gae"].compute(rewards, values, mask, groups, EstimatorSettings(gamma, 1.0))
    torch.testing.assert_close(advantages, (to_go - values) * mask, atol=1e-10, rtol=0)
    torch.testing.assert_close(returns, to_go, atol=1e-10, rtol=0)
    # a decoupled value lambda changes the target alone
    apart = ESTIMATORS["gae"].compute(rewards, values, mask, groups, EstimatorSettings(gamma, lam, value_lam=1.0))
    torch.testing.assert_close(apart[1], to_go, atol=1e-10, rtol=0)
    together = ESTIMATORS["gae"].compute(rewards, values, mask, groups, EstimatorSettings(gamma, lam))
    assert torch.equal(apart[0], together[0])
    # REINFORCE++ is PPO with lambda 1 and a critic that always says 0
    mute = estimate_advantages("gae", rewards, 0 * values, mask, groups, EstimatorSettings(gamma, 1.0))[0]
    assert torch.equal(
        estimate_advantages("reinforce++", rewards, None, mask, groups, EstimatorSettings(gamma))[0], mute
    )
    # with the reward at the end and no discount, its baseline variant is a whitened Dr. GRPO
    ends = torch.zeros_like(rewards)
    ends[torch.arange(len(mask)), mask.sum(1).long() - 1] = rewards[:, 0]
    whitened = masked_whiten(
        ESTIMATORS["grpo"].compute(ends, None, mask, groups, EstimatorSettings(group_std=False))[0], mask
    )
    other, _ = estimate_advantages("reinforce++-baseline", ends, None, mask, groups, EstimatorSettings())
    torch.testing.assert_close(other, whitened, atol=1e-10, rtol=0)


def test_length_adaptive_lambda_on_equal_lengths_is_that_lambda():
    rewards, values, _, groups = make_case(3)
    mask = torch.ones_like(rewards)
    adaptive = ESTIMATORS["gae"].compute(rewards, values, mask, groups, EstimatorSettings(length_alpha=0.5))
    fixed = ESTIMATORS["gae"].compute(rewards, values, mask, groups, EstimatorSettings(lam=1 - 1 / 3.5))
    torch.testing.assert_close(adaptive, fixed)


@pytest.mark.parametrize("name", NAMES)
def test_whitened_where_the_registry_says_so_and_the_scale_of_rewards_matters_elsewhere(name):
    rewards, values, mask, groups = make_case(11)
    advantages, _ = estimate_advantages(name, rewards, values, mask, groups, EstimatorSettings())
    kept = advantages[mask.bool()]
    if ESTIMATORS[name].whitens:
        assert float(kept.mean()) == pytest.approx(0, abs=1e-9)
        assert float(kept.std(unbiased=False)) == pytest.approx(1, abs=1e-6)
    else:
        assert abs(float(kept.mean())) > 1e-3  # long episodes have more tokens
    assert (advantages * (1 - mask) == 0).all()


def test_equal_rewards_of_a_group_give_no_signal():
    """In float32 the mean of equal numbers may differ from them by rounding: divided by a tiny deviation it would be a signal."""
    rewards = torch.full((7, 1), 0.1)
    for name in ("grpo", "rloo", "reinforce++-baseline"):
        advantages, _ = estimate_advantages(
            name, rewards, None, torch.ones(7, 1), torch.zeros(7, dtype=torch.long), EstimatorSettings()
        )
        assert advantages.abs().max() < 2e-3, name


def test_what_is_missing_is_named():
    rewards, _, mask, _ = make_case(0)
    with pytest.raises(ValueError, match="gae needs the values of a critic"):
        estimate_advantages("gae", rewards, None, mask, torch.zeros(len(mask)), EstimatorSettings())
    with pytest.raises(ValueError, match="rloo needs at least two episodes of each prompt"):
        alone = torch.tensor([8] + [3] * (len(mask) - 1))
        estimate_advantages("rloo", rewards, None, mask, alone, EstimatorSettings())
    with pytest.raises(ValueError, match="samples_per_prompt: 1, but estimator grpo"):
        check_samples("grpo", 1)
    check_samples("grpo", 2)
    check_samples("reinforce++", 1)


def test_the_registry_has_every_name():
    assert set(get_args(EstimatorName)) == set(ESTIMATORS)
