"""Losses by token and their weights, KL in the loss, importance of foreign rollouts: closed forms and exact enumeration."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.ppo import objectives as ppo
from alignment.ppo.logprobs import linear_logprobs


def one(value):
    return torch.full((1, 1), float(value))


# ---------------------------------------------------------------------------------------------- the clipped surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [
        (1.25, 1.0, -1.25, False),  # inside the wider upper side
        (1.4, 1.0, -1.3, True),
        (0.85, -1.0, 0.9, True),  # outside the narrower lower side
        (0.95, -1.0, 0.95, False),
        (2.0, -1.0, 2.0, False),
        (5.0, -1.0, 3.0, True),  # the dual clip
        (5.0, -2.0, 6.0, True),
        (5.0, 1.0, -1.3, True),  # for good tokens it does nothing
    ],
)
def test_asymmetric_and_dual_clip_in_each_region(ratio, advantage, expected, clipped):
    log_ratio = one(math.log(ratio)).requires_grad_()
    losses, is_clipped = ppo.policy_losses(log_ratio, one(advantage), 0.1, 0.3, dual_clip=3.0)
    assert losses.item() == pytest.approx(expected, abs=1e-6)
    assert bool(is_clipped) is clipped
    (gradient,) = torch.autograd.grad(losses.sum(), log_ratio)
    assert gradient.item() == pytest.approx(0 if clipped else -advantage * ratio, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), low=st.floats(0.01, 0.9), high=st.floats(0.01, 5), c=st.floats(1.01, 10))
def test_clipped_surrogate_is_the_formula(seed, low, high, c):
    generator = torch.Generator().manual_seed(seed)
    log_ratio, advantages = (2 * torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    ratio = log_ratio.exp()
    lower = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    dual = torch.where(advantages < 0, torch.maximum(lower, c * advantages), lower)
    torch.testing.assert_close(ppo.policy_losses(log_ratio, advantages, low, high)[0], -lower)
    torch.testing.assert_close(ppo.policy_losses(log_ratio, advantages, low, high, c)[0], -dual)


def test_padding_never_reaches_the_loss_or_its_gradient():
    """Log-probabilities on padding are those of some other token: their difference may overflow exp."""
    logprobs = torch.tensor([[-1.0, 0.0]], requires_grad=True)
    old, mask = torch.tensor([[-1.5, -1e4]]), torch.tensor([[1.0, 0.0]])
    losses, clipped = ppo.policy_losses(ppo.log_ratio(logprobs, old, mask), torch.tensor([[2.0, -1.0]]), 0.2, 0.2)
    loss = (ppo.token_weights(mask, "token_mean", 2) * losses).sum()
    loss.backward()
    assert loss.item() == pytest.approx(-2.4)
    assert (clipped.tolist(), logprobs.grad.tolist()) == ([[True, False]], [[0.0, 0.0]])
    kl = ppo.kl_losses(ppo.log_ratio(old.requires_grad_(), logprobs.detach(), mask), "k3")
    kl.sum().backward()
    assert kl.isfinite().all() and old.grad.isfinite().all() and float(old.grad[0, 1]) == 0


def test_value_loss_without_a_clip():
    losses, clipped = ppo.value_losses(one(3), one(0), one(1), None)
    assert (float(losses), bool(clipped)) == (2.0, False)
    assert float(ppo.value_losses(one(3), one(0), one(1), 0.5)[0]) == 2.0  # the clip never makes a loss smaller


# ---------------------------------------------------------------------------------------------- weights of tokens


def test_token_weights_by_hand():
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    expected = {
        "token_mean": [[1 / 4] * 3 + [0], [1 / 4, 0, 0, 0]],
        "sequence_mean": [[1 / 6] * 3 + [0], [1 / 2, 0, 0, 0]],
        "constant_length": [[1 / 10] * 3 + [0], [1 / 10, 0, 0, 0]],
    }
    for how, weights in expected.items():
        torch.testing.assert_close(ppo.token_weights(mask, how, max_length=5), torch.tensor(weights))
    with pytest.raises(ValueError, match="'mean' is not one of token_mean, sequence_mean, constant_length"):
        ppo.token_weights(mask, "mean", 5)


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "constant_length"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), micro=st.integers(1, 6), extra=st.integers(0, 3))
def test_micro_batches_and_padding_do_not_change_a_loss(how, seed, micro, extra):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(6) < torch.randint(1, 7, (6, 1), generator=generator)).double()
    losses = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    lengths = mask.sum(1)
    expected = {
        "token_mean": (losses * mask).sum() / mask.sum(),
        "sequence_mean": ((losses * mask).sum(1) / lengths).mean(),
        "constant_length": ((losses * mask).sum(1) / 9).mean(),
    }[how]
    weights = ppo.token_weights(torch.nn.functional.pad(mask, (0, extra)), how, 9)
    losses = torch.nn.functional.pad(losses, (0, extra), value=7.0)
    parts = [(weights[i : i + micro] * losses[i : i + micro]).sum() for i in range(0, 6, micro)]
    assert float(sum(parts)) == pytest.approx(float(expected), abs=1e-12)


# ---------------------------------------------------------------------------------------------- KL in the loss


def exact_gradients(kind, seed=0, size=5):
    """Over a categorical with logits z: the mean over tokens of p of the loss's gradient, d KL(p||q) / dz, d KL(q||p) / dz."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
    log_q = torch.log_softmax(torch.randn(size, generator=generator, dtype=torch.float64), -1)
    log_p = torch.log_softmax(logits, -1)
    p = log_p.detach().exp()  # how often each token is drawn: no gradient goes through the drawing
    losses = ppo.kl_losses(log_p - log_q, kind)
    reverse, forward = (log_p.exp() * (log_p - log_q)).sum(), (log_q.exp() * (log_q - log_p)).sum()
    return [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in ((p * losses).sum(), reverse, forward)]


@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_kl_in_the_loss_by_enumeration(seed):
    for kind in ("k1", "k2"):
        ours, reverse, forward = exact_gradients(kind, seed)
        torch.testing.assert_close(ours, reverse, atol=1e-12, rtol=0)
        assert (ours - forward).abs().max() > 1e-3
    ours, reverse, forward = exact_gradients("k3", seed)
    torch.testing.assert_close(ours, forward, atol=1e-12, rtol=0)
    assert (ours - reverse).abs().max() > 1e-3


def test_values_of_kl_in_the_loss_are_the_estimates():
    log_ratio = torch.tensor([-0.7, 0.0, 1.3])
    for kind in ("k1", "k2", "k3"):
        torch.testing.assert_close(
            ppo.kl_losses(log_ratio, kind), ppo.kl_estimate(log_ratio, torch.zeros(3), kind), atol=0, rtol=0
        )
    with pytest.raises(ValueError, match="k4"):
        ppo.kl_losses(log_ratio, "k4")


def test_k1_left_to_itself_has_no_gradient_on_average():
    """Why k1 in the loss is given another's gradient: its own is noise around 0, whatever the reference is."""
    logits = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    log_p = torch.log_softmax(logits, -1)
    k1 = ppo.kl_estimate(log_p, torch.full((6,), -math.log(6), dtype=torch.float64), "k1")
    (gradient,) = torch.autograd.grad((log_p.detach().exp() * k1).sum(), logits)
    assert gradient.abs().max() < 1e-12


def test_entropy_bonus_has_the_gradient_of_the_entropy():
    """d H / d z = -p (log p + H) for logits z: one token, a head that is the identity."""
    logits = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    _, entropy = linear_logprobs(logits, torch.eye(6, dtype=torch.float64), None, torch.tensor([3]), 1.0, 100)
    p = torch.softmax(logits, -1).detach()
    assert entropy.item() == pytest.approx(float(-(p * p.log()).sum()), abs=1e-12)
    (gradient,) = torch.autograd.grad(-0.01 * entropy.sum(), logits)
    torch.testing.assert_close(gradient, 0.01 * p * (p.log() + entropy.item()), atol=1e-12, rtol=0)


# ---------------------------------------------------------------------------------------------- importance


def test_truncated_importance_by_hand():
    train = torch.log(torch.tensor([[0.4, 0.2, 0.9]])).requires_grad_()
    engine = torch.log(torch.tensor([[0.5, 0.05, 1e-9]]))
    weights, measured = ppo.truncated_importance(train, engine, torch.tensor([[1.0, 1.0, 0.0]]), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[0.8, 2.0, 1.0]]))
    assert not weights.requires_grad
    assert {k: round(float(v), 5) for k, v in measured.items()} == {
        "importance/mean": 2.4,
        "importance/max": 4.0,
        "importance/truncated": 0.5,
    }


def test_importance_corrects_what_another_engine_drew():
    """Exact: the mean over the engine's tokens of weight * f is the policy's mean of f, as long as nothing is truncated."""
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (torch.log_softmax(torch.randn(1, 8, generator=generator), -1) for _ in range(2))
    f, ones = torch.randn(1, 8, generator=generator), torch.ones(1, 8)
    weights, measured = ppo.truncated_importance(log_p, log_q, ones, cap=1e6)
    assert float((log_q.exp() * weights * f).sum()) == pytest.approx(float((log_p.exp() * f).sum()), abs=1e-5)
    assert float(measured["importance/truncated"]) == 0
    same, _ = ppo.truncated_importance(log_p, log_p, ones, cap=2.0)
    assert torch.equal(same, ones)


def test_ratio_sums_and_effective_sample_share():
    log_ratio = torch.tensor([[0.0, math.log(3.0), 50.0]])
    total, squares, largest = ppo.ratio_sums(log_ratio, torch.tensor([[1.0, 1.0, 0.0]]))
    assert [float(x) for x in (total, squares, largest)] == pytest.approx([4.0, 10.0, 3.0])
    assert ppo.effective_sample_share(4.0, 10.0, 2) == pytest.approx(0.8)
    assert ppo.effective_sample_share(5.0, 5.0, 5) == 1.0
    assert ppo.effective_sample_share(7.0, 49.0, 10) == pytest.approx(0.1)  # one token has all the weight


def test_nothing_on_padding_reaches_whitening_or_rewards():
    nan, mask = float("nan"), torch.tensor([[1.0, 1.0, 0.0]])
    values = torch.tensor([[1.0, 3.0, nan]])
    assert float(ppo.masked_mean(values, mask)) == 2.0
    torch.testing.assert_close(ppo.masked_whiten(values, mask), torch.tensor([[-1.0, 1.0, 0.0]]))
    rewards = ppo.token_rewards(torch.tensor([5.0]), values, mask, 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 4.7, 0.0]]))


def test_clip_symmetric():
    values = torch.tensor([-3.0, 0.5, 3.0])
    assert ppo.clip_symmetric(values, 1.0).tolist() == [-1.0, 0.5, 1.0]
    assert ppo.clip_symmetric(values, None) is values
