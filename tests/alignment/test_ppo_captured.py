"""PPO with captured passes, on the CPU with a recorder of operations: it trains, resumes and gives up as without."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from alignment.ppo import graphs as module
from alignment.ppo import trainer as trainer_module
from alignment.ppo.config import SharedLora
from alignment.ppo.modules import ActorCritic, TrunkActorCritic
from alignment.ppo.trainer import PPOTrainer
from launch.checkpoint import CheckpointStore
from tests.alignment.graph_support import Refuses, passes_of
from tests.alignment.ppo_support import stable
from tests.op_recorder import OpRecorder

pytestmark = pytest.mark.usefixtures("without_kernels")  # a recorder on a CPU records PyTorch's operations


def run_updates(trainer: PPOTrainer):
    metrics = []
    trainer.sink = lambda number, found: metrics.append(stable(found))
    trainer.train()
    return metrics


SETTINGS = {
    "critic of its own": dict(minibatches=1),
    "critic on the trunk": dict(minibatches=1, critic_from="trunk"),
    "critic first": dict(critic_warmup=2),
    "critic first, on the trunk": dict(critic_warmup=2, critic_from="trunk"),
    "wider scoring": dict(forward_batch_size=16),
    "ptx": dict(ptx_data="rows.jsonl", ptx_batch_size=6, ptx_coef=1.0),
    "no critic": dict(estimator="rloo", samples_per_prompt=2, entropy_coef=0.01),
    "old log-probabilities of the first step": dict(
        estimator="rloo", samples_per_prompt=2, kl_in="loss", minibatches=1
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_ppo_trains_as_without(make, recorders, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    words = [("the of", "and to in"), ("a is", "that it"), ("the", "in"), ("of a is", "it was on")]
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in words))
    changes = dict(updates=4, learning_rate=0.01, micro_batch_size=8) | SETTINGS[name]
    trainer = make(**changes)
    captured = run_updates(trainer)
    assert all(passes_of(trunk) for trunk in trainer.roles.trunks())
    assert sum(recorder.replayed for recorder in recorders) > 20
    monkeypatch.setattr(module, "can_capture", lambda device: False)
    plain = run_updates(make(**changes))
    for ours, theirs in zip(captured, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_a_resumed_run_captures_anew_and_goes_on_as_the_other(make, recorders, tmp_path, runtime):
    changes = dict(updates=5, learning_rate=0.01, micro_batch_size=8)
    whole, store = make(**changes), CheckpointStore(tmp_path, runtime, keep=2)
    rows = []

    def sink(number, metrics):
        rows.append(stable(metrics))
        if number == 3:
            whole.save(store)

    whole.sink = sink
    whole.train()
    resumed = make(**changes)
    resumed.load(store.latest())
    assert run_updates(resumed) == rows[3:]
    for ours, theirs in zip(resumed.engine.module.parameters(), whole.engine.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_policy_and_reference_round_alike_when_one_is_given_up(make, recorders, monkeypatch, capsys):
    """Else their difference would be a KL, and the ratio would not be 1."""
    made = []
    monkeypatch.setattr(
        module, "recorder_for", lambda device: made.append(OpRecorder() if made else Refuses()) or made[-1]
    )
    trainer = make(updates=3, learning_rate=0.0, minibatches=1, micro_batch_size=8)
    trainer.runtime.precision = "bf16"
    try:
        rows = run_updates(trainer)
    finally:
        trainer.runtime.precision = "fp32"
    assert "without CUDA graphs" in capsys.readouterr().err and made[1].replayed
    assert [(row["kl/k1"], row["policy/ratio_max"]) for row in rows] == [(0, 1)] * 3


def test_the_first_ratio_is_exactly_1_whichever_pass_is_replayed(make, recorders):
    rows = run_updates(make(updates=4, learning_rate=0.01, minibatches=1, epochs=1))
    assert any(recorder.replayed for recorder in recorders)
    assert [(row["policy/ratio_max"], row["policy/approx_kl"]) for row in rows] == [(1, 0)] * 4


@pytest.mark.parametrize("changes", [{"rollouts_ahead": 1}, {"cuda_graphs": False}, {}])
def test_ppo_captures_nothing_while_something_else_may_use_the_device(make, recorders, changes):
    """Nor what another trainer of these models had captured."""
    trainer = make()
    trunks = trainer.roles.trunks()
    assert all(trunk in module._graphs for trunk in trunks)
    trainer._capture_passes()
    assert all(trunk in module._graphs for trunk in trunks)
    if not changes:  # a source is asked while responses are sampled
        trainer.scorer._early = {"service": trainer.source}
    trainer.config = dataclasses.replace(trainer.config, **changes)
    trainer._capture_passes()
    assert not any(trunk in module._graphs for trunk in trunks)


def test_without_cuda_graphs_neither_passes_nor_sampling_are_captured(make, recorders, monkeypatch):
    made = OpRecorder()
    monkeypatch.setattr(trainer_module, "recorder_for", lambda device: made)
    usual, trainer = make(), make(cuda_graphs=False)
    assert usual.graphs.recorder is made and usual.learner.width_of(17) == 32
    assert trainer.graphs.recorder is None and not any(trunk in module._graphs for trunk in trainer.roles.trunks())
    assert trainer.learner.width_of(17) == 17


def test_a_base_that_acts_in_several_roles_is_not_captured(make, recorders):
    trainer = make(lora=SharedLora(rank=2), critic_from="trunk")
    assert trainer.roles.trunks() and not any(trunk in module._graphs for trunk in trainer.roles.trunks())


def test_the_modules_of_ppo_ask_for_replays(make, recorders):
    trainer = make()
    assert isinstance(trainer.engine.module, ActorCritic)
    policy, critic = trainer.roles.policy.model, trainer.roles.critic.model
    assert {policy, critic, trainer.roles.reference.model} <= set(module._graphs)
    on_trunk = make(critic_from="trunk")
    assert isinstance(on_trunk.engine.module, TrunkActorCritic) and on_trunk.roles.policy.model in module._graphs
