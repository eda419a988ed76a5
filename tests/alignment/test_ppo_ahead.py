"""Rollouts sampled one update ahead: from which weights, corrected by what, and the same whatever the threads do."""

import threading
from concurrent.futures import Future

import pytest
import torch

from alignment.ppo import background, samplers
from alignment.ppo import trainer as trainer_module
from alignment.ppo.ahead import Ahead
from alignment.ppo.background import in_background, wait_together
from alignment.ppo.modules import response_logprobs
from alignment.ppo.rollout import make_batch
from alignment.ppo.sampling import Sampled, share_of
from launch.checkpoint import CheckpointStore
from launch.errors import UserError
from tests.alignment.ppo_support import run_updates, stable, weights


def policy_weights(trainer):
    return {name: value.clone() for name, value in trainer.engine.module.policy.state_dict().items()}


def test_each_rollout_comes_from_the_weights_before_the_update_before(make):
    """Sampled again, in the plain way, from copies of the weights that were kept: the same tokens and log-probabilities."""
    trainer, plain = make(rollouts_ahead=1, updates=4, learning_rate=0.01), make()
    before, rollouts = [], []
    for _ in range(4):
        before.append(policy_weights(trainer))
        rollouts.append(trainer.next_rollout())
        trainer.update(trainer.advantages(trainer.score(rollouts[-1])))
    for number, rollout in enumerate(rollouts):
        policy = plain.engine.module.policy
        policy.load_state_dict(before[max(0, number - 1)])
        sampled = plain._draw(plain.next_prompts(number), number, policy)
        assert sampled.responses == rollout.responses
        assert torch.tensor([value for row in sampled.logprobs for value in row]).equal(
            rollout.flat(rollout.engine_logprobs_BT, range(8))
        )
        batch = make_batch(rollout, range(8), 0)
        with torch.no_grad():
            logprobs, _ = response_logprobs(policy, *vars(batch).values(), 0.9)
        assert torch.allclose(rollout.flat(rollout.engine_logprobs_BT, range(8)), logprobs, atol=1e-5)
        policy.load_state_dict(before[number])  # and they are not the policy's own, but in the first update
        with torch.no_grad():
            own, _ = response_logprobs(policy, *vars(batch).values(), 0.9)
        assert torch.allclose(own, logprobs, atol=1e-4) == (number == 0)


def test_importance_weights_are_logged_and_reach_the_loss(make):
    trainer = make(rollouts_ahead=1, updates=3, learning_rate=0.01, importance_cap=1.05)
    history = run_updates(trainer)
    assert history[0]["importance/mean"] == pytest.approx(1, abs=1e-5)
    assert history[0]["importance/max"] == pytest.approx(1, abs=1e-5)
    assert history[2]["importance/max"] > 1.05 and history[2]["importance/truncated"] > 0
    assert "importance/mean" not in run_updates(make(updates=1))[0]

    other = make(rollouts_ahead=1, importance_cap=1.5, epochs=1, minibatches=1)
    rollout = other.score(other.next_rollout())
    shift_BT = torch.linspace(-1, 1, 48).reshape(8, 6)[:, : rollout.mask_BT.shape[1]]  # as if less or more probable
    rollout.engine_logprobs_BT = rollout.logprobs_BT + shift_BT
    rollout = other.advantages(rollout)
    importance_BT = torch.exp(-shift_BT).clamp(max=1.5) * rollout.mask_BT
    expected = -(importance_BT * rollout.advantages_BT).sum() / rollout.mask_BT.sum()
    assert other.update(rollout)["policy/loss"] == pytest.approx(float(expected), abs=1e-6)


def test_the_order_of_the_threads_changes_nothing(make, monkeypatch):
    """Sampling that is over before the update begins, and sampling that begins only when the update is over."""
    expected, start = run_updates(make(rollouts_ahead=1)), Ahead._start

    def start_and_wait(self, number):
        start(self, number)
        self._flying[number].result()

    monkeypatch.setattr(Ahead, "_start", start_and_wait)
    assert run_updates(make(rollouts_ahead=1)) == expected
    monkeypatch.setattr(Ahead, "_start", start)
    trainer, history = make(rollouts_ahead=1), []
    draw, made = trainer.ahead._draw, [threading.Event() for _ in range(4)]
    made[0].set()
    trainer.ahead._draw = lambda number, model: (made[number].wait(20), draw(number, model))[1]

    def sink(number, metrics):
        history.append(stable(metrics))
        made[number].set()

    trainer.sink = sink
    trainer.train()
    assert history == expected


def test_the_rollout_in_flight_is_in_the_checkpoint(make, tmp_path, runtime):
    whole = make(rollouts_ahead=1, updates=4, kl_target=1.0, normalise_scores=True)
    history = run_updates(whole)
    broken = make(rollouts_ahead=1, updates=4, kl_target=1.0, normalise_scores=True)
    store = CheckpointStore(tmp_path, runtime)

    def save_after_two(number, metrics):
        if number == 2:
            broken.save(store)
            raise InterruptedError

    broken.sink = save_after_two
    with pytest.raises(InterruptedError):
        broken.train()
    resumed = make(rollouts_ahead=1, updates=4, kl_target=1.0, normalise_scores=True)
    resumed.load(store.latest())
    assert run_updates(resumed) == history[2:]
    assert torch.equal(weights(resumed), weights(whole))
    assert store.latest().state()["extra"]["ahead"]["tokens"].dtype == torch.int64


def test_the_share_of_a_checkpoint_on_any_number_of_processes(runtime):
    class Rank:
        def __init__(self, rank, world):
            self.rank, self.world = rank, world

    prompts = [{"prompt_ids": [3]}, {"prompt_ids": [4]}]
    state = {
        "lengths": torch.tensor([1, 3, 2, 1]),
        "tokens": torch.tensor([5, 6, 7, 1, 8, 1, 9]),
        "logprobs": -torch.arange(7.0),
    }
    found = []
    for rank in range(2):
        ahead = Ahead(Rank(rank, 2), None, None, Future.result, remote=False)
        ahead.load(state, 3, prompts, 2)
        assert set(ahead._flying) == {3}
        found.append(ahead.take(3, 4))
    assert found[0] == Sampled(share_of(prompts, 2, 0, 2), [[5], [6, 7, 1]], [[0.0], [-1.0, -2.0, -3.0]])
    assert found[1] == Sampled(share_of(prompts, 2, 1, 2), [[8, 1], [9]], [[-4.0, -5.0], [-6.0]])
    alone = Ahead(runtime, None, None, Future.result, remote=False)
    alone.load(state, 3, prompts, 2)
    back = alone.state(3)
    assert all(torch.equal(back[name], state[name]) for name in state) and alone.state(4) is None


def test_the_sampler_keeps_its_weights_until_sampling_is_over(make):
    """Whoever asks for the sampler's new weights (an evaluation, say) waits for what is in flight."""
    trainer = make(rollouts_ahead=1)
    order = []
    release = threading.Event()
    trainer.ahead._draw = lambda number, model: (release.wait(20), order.append("sampled"))
    trainer.ahead._start(5)
    threading.Timer(0.2, release.set).start()
    trainer.sampler.sync()
    order.append("refreshed")
    assert order == ["sampled", "refreshed"]


def test_nothing_is_sampled_for_an_update_that_never_comes(make):
    trainer = make(rollouts_ahead=1, updates=2)
    run_updates(trainer)
    assert set(trainer.ahead._flying) == {1}


def test_what_fails_in_the_thread_surfaces(make, monkeypatch):
    trainer = make(rollouts_ahead=1)
    monkeypatch.setattr(trainer_module, "draw", lambda *_, **__: (_ for _ in ()).throw(UserError("no room")))
    with pytest.raises(UserError, match="no room"):
        trainer.train()


def test_a_thread_has_no_gradients_and_the_jobs_precision(runtime):
    inside = in_background(lambda: (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")), runtime, daemon=True)
    assert inside.result() == (False, False)
    try:
        runtime.precision = "bf16"
        assert in_background(lambda: torch.is_autocast_enabled("cpu"), runtime, daemon=True).result()
    finally:
        runtime.precision = "fp32"
    assert torch.is_grad_enabled()


def test_waiting_is_told_and_can_be_ended(runtime, monkeypatch):
    monkeypatch.setattr(background, "POLL_S", 0.01)
    told, release = [], threading.Event()
    future = in_background(lambda: release.wait(20), runtime, daemon=True)

    def meanwhile():
        told.append("meanwhile")
        if len(told) == 3:
            release.set()

    assert wait_together(future, runtime, lambda: told.append("alive"), meanwhile) is True
    assert told[:3] == ["meanwhile"] * 3 and told[-1] == "alive"
    stuck = in_background(lambda: release.wait(0.2) and 1 / 0, runtime, daemon=True)
    with pytest.raises(ZeroDivisionError):
        wait_together(stuck, runtime, lambda: None)
    release.clear()
    monkeypatch.setattr(background, "GIVE_UP_S", 0.01)
    with pytest.raises(InterruptedError):
        wait_together(
            in_background(lambda: release.wait(20), runtime, daemon=True),
            runtime,
            lambda: None,
            lambda: (_ for _ in ()).throw(InterruptedError),
        )
    release.set()


def test_shares_of_the_ranks(make):
    prompts = [{"prompt_ids": [3]}, {"prompt_ids": [4]}, {"prompt_ids": [5]}]
    shares = [share_of(prompts, 2, rank, 3) for rank in range(3)]
    assert [share.numbers for share in shares] == [[0, 1], [2, 3], [4, 5]]
    assert [share.prompts for share in shares] == [[prompt] * 2 for prompt in prompts]
    with pytest.raises(ValueError, match="6 episodes cannot be split over 4 processes"):
        share_of(prompts, 2, 0, 4)


def test_a_copy_that_the_memory_does_not_hold_is_refused_before_it_is_made(make, monkeypatch):
    numbers = make().roles.policy.num_parameters()
    monkeypatch.setattr(samplers, "free_bytes", lambda device: 4 * numbers)
    trainer = make(rollouts_ahead=1)
    assert samplers.count_weights(trainer.roles.policy) == numbers
    assert samplers.gathered_bytes(trainer.roles.policy) == 4 * numbers
    monkeypatch.setattr(samplers, "free_bytes", lambda device: 4 * numbers - 1)
    with pytest.raises(UserError, match=r"policy: a whole copy of it to sample from takes .* GiB on each rank"):
        make(rollouts_ahead=1)


def test_the_memory_is_looked_at_before_each_gather(make, monkeypatch):
    """Under ZeRO-3 the copy is filled from whole parameters: that many bytes more, at every rollout."""
    trainer = make()
    policy, engine = trainer.roles.policy, trainer.engine
    size = samplers.gathered_bytes(policy)
    monkeypatch.setattr(samplers, "free_bytes", lambda device: 2 * size)
    monkeypatch.setattr(engine, "zero_stage", 3)
    copied = samplers.WholeCopy(engine, policy, trainer.roles.policy_weights)
    monkeypatch.setattr(samplers, "free_bytes", lambda device: size - 1)
    with pytest.raises(UserError, match="start fewer processes on a machine"):
        copied.sync()
    with pytest.raises(UserError, match="start fewer processes on a machine"):
        samplers.WholeCopy(engine, policy, trainer.roles.policy_weights)
