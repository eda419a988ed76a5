"""What users of other PPO implementations ran into, and that it cannot happen here: docs/ppo_checklist.md has the list.

Each test has the number of the bug there. Those whose proof lies in another file are named on that page alone.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment.ppo import objectives as ppo
from alignment.ppo.models import load_roles
from alignment.ppo.rollout import make_rollout
from launch.checkpoint import CheckpointStore
from launch.errors import UserError
from tests.alignment.checklist_support import (
    FixedReward,
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


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def make(models, runtime):
    return lambda **changes: make_trainer(models, runtime, **changes)


def make_trainer_config(models, **changes):
    from alignment.ppo.config import PPOConfig
    from tests.alignment.checklist_support import SETTINGS

    return PPOConfig(**{**models, **SETTINGS, **changes})


def test_b1_pad_equal_to_eos_is_refused_with_the_remedy(models, tmp_path):
    folder = tmp_path / "policy"
    AutoModelForCausalLM.from_pretrained(models["policy"]).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(models["policy"])
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="pad"):
        load_roles(make_trainer_config(models, policy=str(folder)))


def test_b2_the_kl_of_other_models_is_that_of_their_distributions(make):
    """k1 over many samples agrees with the exact KL at the same states, within four standard errors: it is no artefact."""
    trainer = make(batch_size=200, minibatches=1, forward_batch_size=200)
    rollout = scored_rollout(trainer)
    exact = []
    for row in range(200):
        p, q = (torch.log_softmax(full_logits(m, rollout, row) / 0.7, -1) for m in policy_and_reference(trainer))
        exact.append((p.exp() * (p - q)).sum())
    k1 = (rollout.logprobs_BT - rollout.ref_logprobs_BT).sum(1)
    surplus = k1 - torch.stack(exact)  # mean 0: a martingale
    assert abs(surplus.mean()) < 4 * surplus.std() / 200**0.5
    assert torch.stack(exact).mean() > 1.0


def policy_and_reference(trainer):
    return trainer.roles.policy, trainer.roles.reference


def test_b3_the_score_and_the_penalty_of_a_cut_response_stand_on_its_last_real_token(make):
    trainer = make(missing_eos="replace", missing_eos_penalty=2.0, kl_coef=0.0)
    rollout = scored_rollout(trainer)
    rollout.finished_B[:] = 0
    rewards, mask = trainer.advantages(rollout).rewards_BT, rollout.mask_BT
    last = (torch.arange(8), mask.sum(1).long() - 1)
    assert rewards[last].tolist() == [-2.0] * 8
    assert rewards.sum().item() == pytest.approx(-16.0)


def test_b4_old_logprobs_come_from_no_logits_that_generation_has_warped(make, runtime):
    """They are a function of the tokens alone: a trainer that has generated nothing scores the same tokens to the bit."""
    trainer, other = make(), make()
    rollout = trainer.rollout(trainer.next_prompts())
    assert rollout.logprobs_BT is None
    rebuilt = make_rollout(rollout.prompts, rollout.responses, rollout.groups, 1, runtime)
    assert torch.equal(other.score(rebuilt).logprobs_BT, trainer.score(rollout).logprobs_BT)


def test_b5_bf16_noise_between_rollout_and_update_batches_clips_nothing(make, runtime):
    """Scored in batches of 8, trained in micro-batches of 1, in bf16: the ratio of the first step is 1 within a few percent."""
    trainer = make(forward_batch_size=8, micro_batch_size=1, epochs=1, minibatches=1)
    runtime.precision = "bf16"
    try:
        metrics = one_update(trainer)
    finally:
        runtime.precision = "fp32"
    assert metrics["policy/clip_fraction"] == 0
    assert metrics["policy/approx_kl"] < 1e-3


def test_b6_no_metric_averages_over_padding(make):
    """What stands on the padding of a scored rollout changes no logged number and no weight."""
    found = []
    for junk in (0.0, 3.0):
        trainer = make(temperature=1.5)
        rollout = scored_rollout(trainer)
        padding = rollout.mask_BT == 0
        assert padding.any()
        for name, sign in (("logprobs_BT", 1), ("ref_logprobs_BT", -1), ("values_BT", 1)):
            setattr(rollout, name, getattr(rollout, name).masked_fill(padding, sign * junk))
        found.append((one_update(trainer, rollout), weights_of(trainer)))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-6, rtol=0)


def test_b7_whitening_the_halves_is_not_whitening_the_whole(make):
    """Why the ranks' episodes are gathered before: two ranks whitening alone would train on other advantages."""
    trainer = make()
    rollout = scored_rollout(trainer)
    whole = trainer.advantages(rollout).advantages_BT.clone()
    halves = torch.cat([trainer.advantages(take(rollout, range(i, i + 4))).advantages_BT for i in (0, 4)])
    assert (whole - halves).abs().max() > 0.05
    mean, std = (
        whole[rollout.mask_BT.bool()].mean(),
        whole[rollout.mask_BT.bool()].std(unbiased=False),
    )
    assert (mean.item(), std.item()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-4))


def test_b8_the_critic_is_saved_and_is_the_next_runs_critic(make, models, runtime, tmp_path):
    trainer = make()
    run_updates(trainer)
    trainer.engine.export(trainer.engine.module.critic, tmp_path / "critic")
    trainer.roles.tokenizer.save_pretrained(tmp_path / "critic")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic").eval()
    again = make_trainer({**models, "critic": str(tmp_path / "critic")}, runtime)
    rollout = trainer.rollout(trainer.next_prompts())
    values = passes(trainer, rollout)[2]
    torch.testing.assert_close(passes(again, rollout)[2], values)
    for row, sequence in enumerate(rollout.sequences):
        with torch.no_grad():  # the value of the last token is the reward of all tokens before it
            last = plain(torch.tensor([sequence[:-1]])).logits.item()
        assert values[row, len(rollout.responses[row]) - 1].item() == pytest.approx(last, abs=1e-5)
    start = AutoModelForSequenceClassification.from_pretrained(models["reward"]).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("kl_target", [None, 1.0])
def test_b9_b16_a_resumed_run_goes_on_to_the_bit_adaptive_kl_included(make, runtime, tmp_path, kl_target):
    adaptive = {"kl_target": kl_target, "kl_horizon": 50} if kl_target else {}
    changes = dict(updates=4, critic_learning_rate=2e-3, **adaptive)
    whole = make(**changes)
    history = run_updates(whole)
    first = make(**changes)
    store = CheckpointStore(tmp_path / "checkpoints", runtime, keep=2)

    def stop_after_two(number, metrics):
        if number == 2:
            first.save(store)
            raise KeyboardInterrupt

    first.sink = stop_after_two
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = make(**changes)
    second.load(store.latest())
    assert run_updates(second) == history[2:]
    assert torch.equal(weights_of(second), weights_of(whole))
    assert second.kl.coef == whole.kl.coef
    assert (whole.kl.coef == 0.05) is (kl_target is None)


def test_b13_several_passes_over_a_rollout_do_not_diverge(make):
    """Other engines advise one pass. Here: a reward that can be had, eight passes of two steps over each rollout."""
    trainer = make(
        source=FixedReward(lambda ids: ids.count(7)),
        updates=8,
        epochs=8,
        batch_size=32,
        micro_batch_size=16,
        forward_batch_size=32,
        learning_rate=5e-3,
        kl_coef=0.01,
    )
    history = run_updates(trainer)
    scores = [m["reward/score"] for m in history]
    assert sum(scores[-2:]) > sum(scores[:2]) + 1.0
    assert all(m["policy/approx_kl"] < 1.5 for m in history)
    assert history[-1]["policy/approx_kl"] < history[0]["policy/approx_kl"]


def test_b14_a_rollout_is_sampled_at_the_temperature_not_greedy(make):
    """A batch of one prompt: as many different first tokens as the distribution has, in its proportions."""
    trainer = make(prompts=[[4, 5]], batch_size=400, minibatches=1, forward_batch_size=400, max_new_tokens=1)
    rollout = trainer.rollout(trainer.next_prompts())
    with torch.no_grad():
        p = torch.softmax(trainer.roles.policy(torch.tensor([[4, 5]])).logits[0, -1] / 0.7, -1)
    shares = torch.bincount(torch.tensor([ids[0] for ids in rollout.responses]), minlength=23) / 400
    assert (shares - p).abs().max() < 4 * 0.5 / 400**0.5
    assert (shares > 0).sum() > 3


def test_b15_the_mask_of_a_response_without_eos_has_no_padding(make):
    trainer = make(temperature=1.5, max_new_tokens=10, batch_size=32, minibatches=1)
    rollout = trainer.rollout(trainer.next_prompts())
    eos = trainer.sampling.eos_id
    for row, response in enumerate(rollout.responses):
        assert len(response) == (response.index(eos) + 1 if eos in response else 10)
        assert rollout.mask_BT[row].sum() == len(response)
    assert 0 < rollout.finished_B.sum() < 32


def test_b17_the_kl_penalty_pulls_towards_the_reference(make):
    """Scores are all 0 and the policy starts away from its reference: the penalty alone must bring it closer."""
    trainer = make(
        source=FixedReward(lambda ids: 0.0),
        updates=8,
        kl_coef=1.0,
        batch_size=64,
        minibatches=1,
        epochs=4,
        micro_batch_size=64,
        forward_batch_size=64,
        learning_rate=6e-3,
    )
    history = run_updates(trainer)
    assert history[-1]["kl/k1"] < 0.85 * history[0]["kl/k1"]


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_b17_the_kl_loss_pulls_towards_the_reference(kind):
    """A step down the loss, averaged over the policy's own tokens, makes KL(policy || reference) smaller."""
    generator = torch.Generator().manual_seed(3)
    logits, reference = (torch.randn(9, generator=generator) for _ in range(2))
    log_q, history = torch.log_softmax(reference, -1), []
    for _ in range(20):
        logits.requires_grad_()
        log_p = torch.log_softmax(logits, -1)
        history.append((log_p.exp() * (log_p - log_q)).sum().item())
        loss = (log_p.detach().exp() * ppo.kl_losses(log_p - log_q, kind)).sum()
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - 0.5 * slope).detach()
    assert history == sorted(history, reverse=True)
    assert history[-1] < 0.5 * history[0]


def test_b19_accumulating_gives_the_gradient_of_the_whole_minibatch(make):
    """The gradient norm of the first step, and all weights after it, for micro-batches of 8, 3 and 1 of unequal lengths."""
    found = []
    for micro in (8, 3, 1):
        trainer = make(micro_batch_size=micro, epochs=1, minibatches=1, temperature=1.5)
        found.append((one_update(trainer)["train/grad_norm"], weights_of(trainer)))
    for norm, weights in found[1:]:
        assert norm == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(weights, found[0][1], atol=1e-5, rtol=0)


def test_metrics_are_plain_numbers(make):
    """They go into JSON: a tensor among them would keep a graph alive, or end the run at the first log."""
    metrics = one_update(make())
    assert json.loads(json.dumps(metrics)) == metrics
