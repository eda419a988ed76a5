"""Old log-probabilities that the first training pass gives, where nothing needs them before it: no pass, the same numbers."""

import pytest
import torch

from alignment.ppo.config import PPOConfig
from tests.alignment import ppo_support as support
from tests.alignment.ppo_support import TokenReward, run_updates, weights

folders, runtime, make = support.folders, support.runtime, support.make
WITHOUT = {
    "grpo, KL in the loss": dict(estimator="grpo", samples_per_prompt=4, kl_in="loss", kl_kind="k3"),
    "rloo, KL in the loss": dict(estimator="rloo", samples_per_prompt=2, kl_in="loss", kl_target=0.1),
    "reinforce++, no KL": dict(estimator="reinforce++", kl_coef=0.0),
}
WITH = {
    "a critic": dict(estimator="gae", kl_in="loss"),
    "KL in the rewards": dict(estimator="reinforce++"),
    "minibatches": dict(estimator="reinforce++", kl_in="loss", minibatches=2),
    "a dump": dict(estimator="reinforce++", kl_in="loss", dump_rollouts="jsonl"),
    "rollouts ahead": dict(estimator="reinforce++", kl_in="loss", rollouts_ahead=1),
}


def build(make, changes):
    return make(TokenReward(), **{"minibatches": 1, "learning_rate": 1e-2, **changes})


def count_passes(trainer, monkeypatch):
    """A list that the policy's passes without gradient are added to."""
    plain, found = trainer.learner.forward, []

    def forward(batch):
        if not torch.is_grad_enabled():
            found.append(batch)
        return plain(batch)

    monkeypatch.setattr(trainer.learner, "forward", forward)
    return found


@pytest.mark.parametrize("case", WITHOUT)
def test_updates_are_the_same_to_the_bit_without_a_pass_of_its_own(make, monkeypatch, case):
    trainer = build(make, WITHOUT[case])
    passes = count_passes(trainer, monkeypatch)
    history = run_updates(trainer)
    assert passes == [] and history[-1]["kl/k1"] != 0 != history[-1]["policy/approx_kl"]
    monkeypatch.setattr(PPOConfig, "first_pass_is_old", False)
    other = build(make, WITHOUT[case])
    others = count_passes(other, monkeypatch)
    assert run_updates(other) == history and len(others) >= 3
    assert torch.equal(weights(trainer), weights(other))


@pytest.mark.parametrize("case", WITH)
def test_what_needs_them_before_gets_them(make, tmp_path, monkeypatch, case):
    trainer = build(make, {"output_dir": str(tmp_path), **WITH[case]})
    passes = count_passes(trainer, monkeypatch)
    run_updates(trainer)
    assert len(passes) >= 3


def test_they_come_with_the_update_and_stay(make):
    trainer = build(make, WITHOUT["grpo, KL in the loss"])
    rollout = trainer.advantages(trainer.score(trainer.rollout(trainer.next_prompts())))
    assert rollout.logprobs_BT is None and trainer.score(rollout) is rollout
    expected = trainer.passes._read(rollout, trainer.learner.plan(range(8), rollout.lengths, 10**6, 1)[0], True)
    trainer.update(rollout)
    torch.testing.assert_close(rollout.logprobs_BT, expected["policy"], atol=1e-5, rtol=0)
    kept = rollout.logprobs_BT.clone()
    assert trainer.update(rollout)["policy/ratio_max"] > 1.001  # the same rollout once more: off-policy now
    assert torch.equal(rollout.logprobs_BT, kept)


def test_what_another_engine_drew_is_read_before(make):
    """Its importance weights need them. (`engine_logprobs_BT` may be set by hand.)"""
    trainer = build(make, WITHOUT["grpo, KL in the loss"])
    rollout = trainer.rollout(trainer.next_prompts())
    rollout.engine_logprobs_BT = -0.5 * rollout.mask_BT
    rollout = trainer.advantages(trainer.score(rollout))
    assert rollout.logprobs_BT is not None and rollout.importance_BT is not None
    trainer.update(rollout)


def test_evaluation_reads_them(make):
    from alignment.ppo.evaluation import HeldOut

    trainer = make(
        TokenReward(),
        held_out=HeldOut(support.prompt_rows()),
        **{"minibatches": 1, "learning_rate": 1e-2, **WITHOUT["grpo, KL in the loss"]},
    )
    run_updates(trainer)
    assert trainer.evaluate().row["kl_k3"] > 0
