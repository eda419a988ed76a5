"""The mathematics of PPO against closed forms and brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.ppo import objectives as ppo
from alignment.ppo.controllers import KLController


def random_case(seed, b=3, t=7):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(b, t, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.randint(1, t + 1, (b,), generator=generator)
    mask = (torch.arange(t) < lengths[:, None]).double()
    return rewards, values, mask, lengths


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_gae_equals_the_double_sum(seed, gamma, lam):
    rewards, values, mask, lengths = random_case(seed)
    advantages, returns = ppo.gae(rewards, values, mask, gamma, lam)
    for b in range(len(lengths)):
        n = int(lengths[b])
        for t in range(rewards.shape[1]):
            expected = 0.0
            for k in range(n - t):
                following = values[b, t + k + 1] if t + k + 1 < n else 0.0
                delta = rewards[b, t + k] + gamma * following - values[b, t + k]
                expected += (gamma * lam) ** k * delta
            assert advantages[b, t] == pytest.approx(float(expected), abs=1e-10)
            assert returns[b, t] == pytest.approx(float(expected + values[b, t]) if t < n else 0.0, abs=1e-10)


def test_gae_with_lambda_one_is_return_minus_value():
    rewards, values, mask, _ = random_case(1)
    advantages, returns = ppo.gae(rewards, values, mask, 1.0, 1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1)
    assert torch.allclose(advantages, (to_go - values) * mask)
    assert torch.allclose(returns, to_go * mask)


def test_padding_does_not_leak_into_advantages():
    rewards, values, mask, _ = random_case(2)
    spoilt = ppo.gae(rewards * mask + 99 * (1 - mask), values * mask + 77 * (1 - mask), mask, 0.9, 0.95)
    clean = ppo.gae(rewards * mask, values * mask, mask, 0.9, 0.95)
    assert torch.equal(spoilt[0] * mask, clean[0] * mask)
    assert torch.equal(spoilt[1], clean[1])


def test_whitening_is_masked_global_and_with_population_variance():
    values = torch.tensor([[1.0, 2.0, 50.0], [3.0, 60.0, 70.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    white = ppo.masked_whiten(values, mask)
    deviation = math.sqrt(2 / 3)  # population deviation of 1, 2, 3
    assert torch.allclose(white, torch.tensor([[-1 / deviation, 0.0, 0.0], [1 / deviation, 0.0, 0.0]]), atol=1e-6)
    kept = ppo.masked_whiten(values, mask, shift_mean=False)
    assert float((kept * mask).sum() / 3) == pytest.approx(2.0, abs=1e-6)


def test_kl_estimators_average_to_the_true_kl():
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    truth = float((p * (p / q).log()).sum())
    for kind in ("k1", "k3"):
        assert float((p * ppo.kl_estimate(p.log(), q.log(), kind)).sum()) == pytest.approx(truth, abs=1e-12)
    assert (ppo.kl_estimate(p.log(), q.log(), "k3") >= 0).all()
    assert torch.allclose(ppo.kl_estimate(p.log(), q.log(), "k2"), 0.5 * (p / q).log() ** 2)
    with pytest.raises(ValueError, match="k4"):
        ppo.kl_estimate(p, q, "k4")


def test_score_sits_on_the_last_real_token():
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    kl = torch.full((2, 3), 2.0)
    rewards = ppo.token_rewards(torch.tensor([10.0, 20.0]), kl, mask, 0.5)
    assert torch.equal(rewards, torch.tensor([[-1.0, -1.0, 9.0], [19.0, 0.0, 0.0]]))


def test_missing_eos_replace_and_subtract_differ():
    scores, finished = torch.tensor([3.0, 4.0]), torch.tensor([1, 0])
    assert ppo.apply_missing_eos(scores, finished, "none", 1.0).tolist() == [3.0, 4.0]
    assert ppo.apply_missing_eos(scores, finished, "replace", 1.5).tolist() == [3.0, -1.5]
    assert ppo.apply_missing_eos(scores, finished, "subtract", 1.5).tolist() == [3.0, 2.5]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [(1.0, 2.0, -2.0, 0), (1.5, 1.0, -1.2, 1), (1.5, -1.0, 1.5, 0), (0.5, 1.0, -0.5, 0), (0.5, -1.0, 0.8, 1)],
)
def test_clipped_surrogate_in_each_region(ratio, advantage, expected, clipped):
    loss, count = ppo.policy_losses(torch.full((1, 1), math.log(ratio)), torch.full((1, 1), advantage), 0.2, 0.2)
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    assert int(count) == clipped


def test_policy_gradient_at_ratio_one_is_reinforce():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages = torch.tensor([[3.0, -4.0]])
    ppo.policy_losses(logprobs - logprobs.detach(), advantages, 0.2, 0.2)[0].sum().backward()
    assert torch.allclose(logprobs.grad, -advantages)


def test_clipped_value_loss():
    one = torch.ones(1, 1)
    loss, clipped = ppo.value_losses(1.0 * one, 0.0 * one, 0.0 * one, 0.2)  # moved away: the plain error counts
    assert (float(loss), int(clipped)) == (0.5, 0)
    loss, clipped = ppo.value_losses(1.0 * one, 0.0 * one, 2.0 * one, 0.2)  # moved too far towards: clipped
    assert float(loss) == pytest.approx(0.5 * 1.8**2, abs=1e-6)
    assert int(clipped) == 1


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert float(ppo.explained_variance(returns, returns, mask)) == pytest.approx(1.0)
    assert float(ppo.explained_variance(torch.full_like(returns, 5.0), returns, mask)) == pytest.approx(0.0, abs=1e-6)
    assert float(ppo.explained_variance(-returns, returns, mask)) == pytest.approx(-3.0, abs=1e-5)
    for same in (0.0, 0.1, -7e5):  # nothing to explain, whatever rounding leaves
        assert ppo.explained_variance(returns, torch.full_like(returns, same), mask).isnan()


def test_kl_controller_follows_ziegler():
    fixed = KLController(0.1)
    fixed.update(50.0, 64)
    assert fixed.coef == 0.1
    adaptive = KLController(0.1, target=6.0, horizon=10_000)
    adaptive.update(6.6, 64)  # error 0.1, inside the clip
    assert adaptive.coef == pytest.approx(0.1 * (1 + 0.1 * 64 / 10_000))
    adaptive = KLController(0.1, target=6.0, horizon=10_000)
    adaptive.update(60.0, 64)  # error clipped to 0.2
    assert adaptive.coef == pytest.approx(0.1 * (1 + 0.2 * 64 / 10_000))
    adaptive.update(0.0, 64)
    assert adaptive.coef == pytest.approx(0.1 * (1 + 0.2 * 64 / 10_000) * (1 - 0.2 * 64 / 10_000))
