"""Old log-probabilities that the first training pass gives, where nothing needs them before it: no pass, the same numbers."""

from pathlib import Path

import pytest
import torch

from alignment.ppo.config import PPOConfig, SharedLora
from alignment.ppo.evaluation import HeldOut
from launch.checkpoint import CheckpointStore
from launch.errors import UserError
from tests.alignment import ppo_support as support
from tests.alignment.ppo_support import TokenReward, run_updates, weights

folders, runtime, make = support.folders, support.runtime, support.make
WITHOUT = {
    "grpo, KL in the loss": dict(estimator="grpo", samples_per_prompt=4, kl_in="loss", kl_kind="k3"),
    "rloo, KL in the loss": dict(estimator="rloo", samples_per_prompt=2, kl_in="loss", kl_target=0.1),
    "reinforce++, no KL": dict(estimator="reinforce++", kl_in="loss", kl_coef=0.0),
    "bf16": dict(estimator="reinforce++", kl_in="loss", normalise_scores=True, entropy_coef=0.01),
    "PTX": dict(estimator="reinforce++", kl_in="loss", ptx_data="rows.jsonl", ptx_batch_size=6),
    "LoRA": dict(estimator="reinforce++", kl_in="loss", lora=SharedLora(rank=2)),
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
def test_updates_are_the_same_to_the_bit_without_a_pass_of_its_own(make, runtime, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "the of", "completion": "and to in"}\n' * 3)
    monkeypatch.setattr(runtime, "precision", "bf16" if case == "bf16" else "fp32")
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


def test_evaluation_reads_them_in_larger_passes(make, monkeypatch):
    settings = {"minibatches": 1, "learning_rate": 1e-2, "micro_batch_size": 1, "forward_batch_size": 8}
    held_out = HeldOut(support.prompt_rows())
    trainer = make(TokenReward(), held_out=held_out, **{**settings, **WITHOUT["grpo, KL in the loss"]})
    run_updates(trainer)
    passes = count_passes(trainer, monkeypatch)
    assert trainer.evaluate().row["kl_k3"] > 0
    assert max(len(batch.tokens_bS) for batch in passes) >= 6


def test_a_rollout_whose_policy_has_moved_is_not_taken_for_its_own(make, tmp_path, runtime):
    trainer = build(make, WITHOUT["grpo, KL in the loss"])
    first, second = (trainer.advantages(trainer.score(trainer.rollout(trainer.next_prompts()))) for _ in range(2))
    trainer.update(first)
    with pytest.raises(
        UserError, match=r"update: .* the policy has moved since they were left to the update; call score"
    ):
        trainer.update(second)
    third = trainer.advantages(trainer.score(second))
    assert trainer.update(third)["policy/approx_kl"] > 0
    store = CheckpointStore(tmp_path, runtime)
    trainer.save(store)
    fourth = trainer.advantages(trainer.score(trainer.rollout(trainer.next_prompts(0))))
    trainer.load(store.latest())
    with pytest.raises(UserError, match="the policy has moved"):
        trainer.update(fourth)


def test_damaged_weights_are_named_before_any_is_changed(make):
    trainer = build(make, WITHOUT["grpo, KL in the loss"])
    rollout = trainer.advantages(trainer.score(trainer.rollout(trainer.next_prompts())))
    with torch.no_grad():
        trainer.roles.policy.lm_head.weight[3] = torch.nan
    with pytest.raises(UserError, match=r"update: a log-probability under the policy is nan.*damaged.*no weights were"):
        trainer.update(rollout)
    damaged = [name for name, p in trainer.engine.module.named_parameters() if not p.isfinite().all()]
    assert damaged == ["policy.lm_head.weight"] and trainer.roles.policy.lm_head.weight.isnan().any(1).sum() == 1
    assert all(p.grad is None for p in trainer.engine.module.parameters())


def test_it_is_logged_after_its_update(make):
    trainer = build(make, WITHOUT["grpo, KL in the loss"])
    rollout = trainer.advantages(trainer.score(trainer.rollout(trainer.next_prompts())))
    with pytest.raises(UserError, match=r"log: the rollout has no log-probabilities yet; call update"):
        trainer.log(rollout, {})
    assert trainer.log(rollout, trainer.update(rollout))["kl/k3"] == 0
