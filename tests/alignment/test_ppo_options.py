"""Options of losses and advantages through the trainer: a step's loss, or a rollout's advantages, by hand in plain numbers."""

import math

import pytest
import torch

from tests.alignment.checklist_support import FixedReward
from tests.alignment.ppo_support import scored, weights

PAYS = FixedReward(lambda ids: sum(ids) % 7 - 3)
NO_KL = {"kl_coef": 0.0, "missing_eos": "none"}


# ---------------------------------------------------------------------------------------------- losses


def shaken(trainer):
    """A rollout with advantages whose policy, reference and critic have moved away since: ratios from 0.2 to 5."""
    rollout = scored(trainer)
    generator = torch.Generator().manual_seed(3)
    for name, scale in {"logprobs_BT": 0.8, "ref_logprobs_BT": 0.8, "values_BT": 0.5}.items():
        numbers_BT = getattr(rollout, name)
        noise_BT = scale * torch.randn(numbers_BT.shape, generator=generator)
        setattr(rollout, name, (numbers_BT + noise_BT) * rollout.mask_BT)
    return rollout


def now(trainer, prompt, response):
    """Log-probability, entropy and value of each response token, by plain forward passes over one episode."""
    ids, first = torch.tensor([[*prompt, *response]]), len(prompt) - 1
    with torch.no_grad():
        logits_TV = trainer.roles.policy(ids).logits[0, first:-1] / trainer.config.temperature
        critic = trainer.roles.critic or trainer.roles.policy
        head = (trainer.roles.critic or trainer.roles).score
        values_T = head(critic.base_model(ids).last_hidden_state)[0, first:-1, 0]
    logprobs_TV = torch.log_softmax(logits_TV, -1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    picked_T = [float(row[token]) for row, token in zip(logprobs_TV, response, strict=True)]
    return list(zip(picked_T, entropy_T.tolist(), values_T.tolist(), strict=True))


def clipped(ratio, advantage, low, high, dual):
    """The clipped surrogate of one token, negated."""
    loss = max(-advantage * ratio, -advantage * min(max(ratio, 1 - low), 1 + high))
    return min(loss, -dual * advantage) if advantage < 0 else loss


KL = {
    "k1": lambda x: x,
    "k2": lambda x: x * x / 2,
    "k3": lambda x: math.exp(-x) - 1 + x,
}


MEANS = {
    "token_mean": lambda episodes: sum(map(sum, episodes)) / sum(map(len, episodes)),
    "sequence_mean": lambda episodes: sum(sum(terms) / len(terms) for terms in episodes) / len(episodes),
    "constant_length": lambda episodes: sum(map(sum, episodes)) / (len(episodes) * 6),  # max_new_tokens
}


def loss_by_hand(
    trainer, rollout, low=0.2, high=0.2, dual=math.inf, entropy=0.0, kl=0.0, kind="k1", value=0.1, mean="token_mean"
):
    """A mean over the tokens of: surrogate - entropy bonus + KL penalty + clipped value loss."""
    episodes = []
    for row, (prompt, response) in enumerate(zip(rollout.prompt_ids, rollout.responses, strict=True)):
        terms = []
        for t, (logprob, spread, v) in enumerate(now(trainer, prompt, response)):
            old, reference, advantage, v_old, target = (
                float(x[row, t])
                for x in (
                    rollout.logprobs_BT,
                    rollout.ref_logprobs_BT,
                    rollout.advantages_BT,
                    rollout.values_BT,
                    rollout.returns_BT,
                )
            )
            near = v_old + min(max(v - v_old, -0.2), 0.2)
            terms.append(
                clipped(math.exp(logprob - old), advantage, low, high, dual)
                - entropy * spread
                + kl * KL[kind](logprob - reference)
                + value * 0.5 * max((v - target) ** 2, (near - target) ** 2)
            )
        episodes.append(terms)
    return MEANS[mean](episodes)


def step_loss(trainer, rollout):
    """The loss of the one optimizer step of an update: the sum of what its micro-batches are differentiated of."""
    losses, plain = [], trainer.engine.backward

    def backward(loss, last):
        losses.append(float(loss.detach()))
        plain(loss, last)

    trainer.engine.backward = backward
    trainer.update(rollout)
    assert len(losses) > 1
    return sum(losses)


@pytest.mark.parametrize(
    ("changes", "by_hand"),
    [
        ({}, {}),
        ({"entropy_coef": 0.3}, {"entropy": 0.3}),
        ({"clip": 0.1, "clip_high": 0.6}, {"low": 0.1, "high": 0.6}),
        ({"dual_clip": 1.5}, {"dual": 1.5}),
        ({"value_coef": 0.7}, {"value": 0.7}),
        ({"value_coef": 0.7, "critic_from": "trunk"}, {"value": 0.7}),
        *[({"kl_in": "loss", "kl_coef": 0.4, "kl_kind": kind}, {"kl": 0.4, "kind": kind}) for kind in KL],
        ({"loss_mean": "sequence_mean"}, {"mean": "sequence_mean"}),
        ({"loss_mean": "constant_length"}, {"mean": "constant_length"}),
    ],
    ids=[
        *("plain", "entropy_coef", "clip_high", "dual_clip", "value_coef", "on_the_trunk", "kl_k1", "kl_k2", "kl_k3"),
        *("sequence_mean", "constant_length"),
    ],
)
def test_the_loss_of_a_step_is_the_formula(make, changes, by_hand):
    trainer = make(PAYS, epochs=1, minibatches=1, **{**NO_KL, **changes})
    if trainer.roles.score is not None:  # of zeros, it would give 0 whatever it reads
        torch.nn.init.normal_(trainer.roles.score.weight, generator=torch.Generator().manual_seed(5))
    rollout = shaken(trainer)
    expected, without = loss_by_hand(trainer, rollout, **by_hand), loss_by_hand(trainer, rollout)
    assert not changes or abs(expected - without) > 0.01  # the option matters here
    assert step_loss(trainer, rollout) == pytest.approx(expected, abs=1e-4)


def gradients_of_a_step(trainer, rollout):
    """The gradients that the one step of an update would be made with; no step is made."""
    found = []

    def keep():
        found.append(torch.cat([p.grad.flatten() for p in trainer.engine.module.parameters()]))
        return 0.0

    trainer.engine.step = keep
    trainer.update(rollout)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_max_grad_norm_scales_a_gradient_that_is_longer(make, share):
    """Adam's first step is rate * g / (|g| + eps): with a large eps the length of the gradient g matters."""
    rate, eps = 0.1, 10.0
    settings = dict(epochs=1, minibatches=1, learning_rate=rate, adam_eps=eps, **NO_KL)
    twin = make(PAYS, **settings)
    rollout = shaken(twin)
    gradient = gradients_of_a_step(twin, rollout)
    norm = float(gradient.square().sum().sqrt())
    trainer = make(PAYS, max_grad_norm=share * norm, **settings)
    before = weights(trainer)
    assert trainer.update(rollout)["train/grad_norm"] == pytest.approx(norm, rel=1e-5)  # of before it is cut
    used = gradient * min(1.0, share)
    torch.testing.assert_close(weights(trainer) - before, -rate * used / (used.abs() + eps), atol=1e-6, rtol=1e-3)
    assert float((rate * gradient / (gradient.abs() + eps)).abs().max()) > 1e-4  # far more than that tolerance


# ---------------------------------------------------------------------------------------------- advantages


def gae_by_hand(trainer, rollout, lam, gamma=1.0):
    """Advantage of each token of each episode: sum_k (gamma lam(length))^k (r + gamma V_next - V), k tokens ahead."""
    rows = []
    scores, values = rollout.scores_B.tolist(), rollout.values_BT.tolist()
    for score, v, n in zip(scores, values, map(len, rollout.responses), strict=True):
        v = [*v[:n], 0.0]
        deltas = [(score if t == n - 1 else 0.0) + gamma * v[t + 1] - v[t] for t in range(n)]
        rows.append([sum((gamma * lam(n)) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)])
    return rows


def whitened(rows):
    flat = [x for row in rows for x in row]
    mean = sum(flat) / len(flat)
    spread = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat))
    return [[(x - mean) / spread for x in row] for row in rows]


def compare(ours_BT, rows, other):
    """Equal to `rows`, and those differ from what they would be without the option."""
    flat = [[x for row in each for x in row] for each in (rows, other)]
    assert max(abs(a - b) for a, b in zip(*flat, strict=True)) > 0.01
    ours = [x for line, row in zip(ours_BT.tolist(), rows, strict=True) for x in line[: len(row)]]
    assert ours == pytest.approx(flat[0], abs=1e-3)


def gae_rollout(make, **changes):
    trainer = make(PAYS, **NO_KL, **changes)
    rollout = scored(trainer)
    return rollout, lambda lam, gamma=1.0: gae_by_hand(trainer, rollout, lam, gamma)


def test_gamma_discounts_advantages_and_returns(make):
    rollout, gae = gae_rollout(make, gamma=0.7)
    discounted, plain = (gae(lambda n: 0.95, gamma) for gamma in (0.7, 1.0))
    compare(rollout.advantages_BT, whitened(discounted), whitened(plain))
    values = rollout.values_BT.tolist()
    returns = [
        [[a + v for a, v in zip(row, line, strict=False)] for row, line in zip(rows, values, strict=True)]
        for rows in (discounted, plain)
    ]
    compare(rollout.returns_BT, *returns)


def test_length_alpha_sets_the_lambda_of_each_episode(make):
    rollout, gae = gae_rollout(make, length_alpha=0.4)
    adaptive = whitened(gae(lambda n: max(0.0, 1 - 1 / (0.4 * n))))
    compare(rollout.advantages_BT, adaptive, whitened(gae(lambda n: 0.95)))


def test_value_lambda_is_that_of_the_returns_alone(make):
    rollout, gae = gae_rollout(make, value_lambda=0.3, gae_lambda=0.9)
    values = rollout.values_BT.tolist()

    def returns(lam):
        return [[a + v for a, v in zip(row, line, strict=False)] for row, line in zip(gae(lam), values, strict=True)]

    compare(rollout.returns_BT, returns(lambda n: 0.3), returns(lambda n: 0.9))
    compare(rollout.advantages_BT, whitened(gae(lambda n: 0.9)), whitened(gae(lambda n: 0.3)))


def test_advantage_clip_holds_the_whitened_advantages(make):
    rollout, gae = gae_rollout(make, advantage_clip=0.6)
    free = whitened(gae(lambda n: 0.95))
    compare(rollout.advantages_BT, [[min(max(x, -0.6), 0.6) for x in row] for row in free], free)


@pytest.mark.parametrize("group_std", [True, False])
def test_group_std_divides_by_the_deviation_of_the_group(make, group_std):
    rollout = scored(make(PAYS, **NO_KL, estimator="grpo", samples_per_prompt=4, group_std=group_std))
    rows = {True: [], False: []}
    for score, group, response in zip(rollout.scores_B.tolist(), rollout.groups, rollout.responses, strict=True):
        mates = [s for s, g in zip(rollout.scores_B.tolist(), rollout.groups, strict=True) if g == group]
        mean = sum(mates) / 4
        deviation = math.sqrt(sum((s - mean) ** 2 for s in mates) / 3)
        assert deviation > 0.1
        rows[False].append([score - mean] * len(response))
        rows[True].append([(score - mean) / deviation] * len(response))
    compare(rollout.advantages_BT, rows[group_std], rows[not group_std])
