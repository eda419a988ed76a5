"""Sources that are asked for rewards while the next responses are sampled: the same result, in another order."""

import threading

import pytest
import torch

from alignment.generation import LocalEngine
from alignment.ppo.scoring import join_chunks
from alignment.reward.sources.combined import CombinedSource
from alignment.reward.sources.function import FunctionSource
from alignment.reward.sources.protocol import Scores, single
from alignment.reward.sources.rules import RuleSource, length_rule
from alignment.reward.sources.service import ServiceSource
from launch.errors import UserError
from launch.exchange import Backoff, Endpoint
from tests.alignment.ppo_support import run_updates, weights
from tests.support import word_tokenizer


class Elsewhere:
    """A source that would be a service: it counts its calls, pays for tokens, and logs something more."""

    name = "elsewhere"
    row_by_row = True

    def __init__(self, before=lambda number: None):
        self.calls, self.before = [], before

    def score(self, episodes):
        self.before(len(self.calls))
        self.calls.append([list(ids) for ids in episodes.completion_ids])
        rewards_B = torch.tensor([sum(ids) / 7 for ids in episodes.completion_ids])
        tokens = [torch.tensor(ids) / 11 for ids in episodes.completion_ids]
        return Scores(rewards_B, {self.name: rewards_B}, tokens, {"elsewhere/length": rewards_B * 0 + 1})


def with_model(make, elsewhere, **changes):
    """A trainer whose source is a reward model, and `elsewhere`."""
    trainer = make(**changes)
    both = CombinedSource({"elsewhere": (0.3, elsewhere), **trainer.source.sources})
    return make(source=both, **changes)


@pytest.mark.parametrize("changes", [{}, {"rollouts_ahead": 1}, {"forward_batch_size": 3}])
def test_overlapped_scores_are_those_of_the_plain_order_to_the_bit(make, changes):
    plain, overlapped = Elsewhere(), Elsewhere()
    a = with_model(make, plain, **changes)
    b = with_model(make, overlapped, overlap_scoring=True, **changes)
    assert run_updates(a) == run_updates(b)
    assert torch.equal(weights(a), weights(b))
    size = changes.get("forward_batch_size", 4)
    assert [len(call) for call in plain.calls] == [8] * 3
    assert [len(call) for call in overlapped.calls] == [*[size] * (8 // size), *[8 % size] * (8 % size > 0)] * 3


def test_a_chunk_is_scored_while_the_next_is_sampled(make, monkeypatch):
    """A source too slow to answer before the second chunk is being sampled, and sampling that waits to see it asked."""
    asked, sampling_again = threading.Event(), threading.Event()
    order = []

    def before(number):
        if number == 0:
            order.append("asked for chunk 1")
            asked.set()
            assert sampling_again.wait(20), "chunk 2 was not sampled while chunk 1 was scored"
            order.append("answered for chunk 1")

    source = Elsewhere(before)
    trainer = make(source=source, overlap_scoring=True)
    generate = LocalEngine.generate

    def watched(*words):
        if len(order) == 0:
            order.append("sample chunk 1")
        else:
            assert asked.wait(20), "the source was not asked before all was sampled"
            order.append("sample chunk 2")
            sampling_again.set()
        return generate(*words)

    monkeypatch.setattr(LocalEngine, "generate", watched)
    rollout = trainer.rollout(trainer.next_prompts())
    trainer.score(rollout)
    assert order == ["sample chunk 1", "asked for chunk 1", "sample chunk 2", "answered for chunk 1"]


def test_models_are_asked_once_for_all(make, monkeypatch):
    trainer = make(overlap_scoring=True)
    assert trainer.scorer.begin_early() is None
    assert with_model(make, Elsewhere(), overlap_scoring=True).scorer._early.keys() == {"elsewhere"}
    assert make(source=Elsewhere()).scorer.begin_early() is None  # not asked for


def test_a_function_sees_all_episodes_with_and_without_overlap(make, tmp_path):
    """One that takes the mean of its batch off would be another reward, were it asked chunk by chunk."""
    seen = []

    def centred(completion_ids, **columns):
        seen.append(len(completion_ids))
        values = [float(len(set(ids))) for ids in completion_ids]
        return [value - sum(values) / len(values) for value in values]

    def run(overlap):
        function, rule = FunctionSource("c", centred, "f.py:c", tmp_path), RuleSource("brief", length_rule(2, 6))
        source = CombinedSource({"c": (1.0, function), "brief": (0.5, rule)})
        trainer = make(source, critic_from="policy", overlap_scoring=overlap)
        assert trainer.scorer._early.keys() == ({"brief"} if overlap else set())
        return run_updates(trainer), weights(trainer)

    (plain, plain_weights), (overlapped, overlapped_weights) = run(False), run(True)
    assert seen == [8] * 6 and plain == overlapped
    assert torch.equal(plain_weights, overlapped_weights)


def test_services_are_asked_early(make):
    service = ServiceSource("judge", Endpoint("http://127.0.0.1:9/"), word_tokenizer(), Backoff(0, "judge"))
    assert make(source=service, overlap_scoring=True).scorer._early == {"judge": service}


def test_what_fails_early_surfaces_at_the_score(make):
    def broken(number):
        raise UserError("short: returned 3 values")

    trainer = make(source=Elsewhere(broken), overlap_scoring=True)
    rollout = trainer.rollout(trainer.next_prompts())
    with pytest.raises(UserError, match="short"):
        trainer.score(rollout)


def test_sampling_that_fails_leaves_no_thread_waiting(make, monkeypatch):
    trainer = make(source=Elsewhere(), overlap_scoring=True)
    monkeypatch.setattr(LocalEngine, "generate", lambda *_: (_ for _ in ()).throw(MemoryError))
    before = set(threading.enumerate())
    with pytest.raises(MemoryError):
        trainer.rollout(trainer.next_prompts())
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()


def test_chunks_are_joined_in_the_order_of_the_episodes():
    first = single("s", torch.tensor([2.0, 0.0]), all=torch.tensor([1.0, 2.0]), some=torch.tensor([3.0, 4.0]))
    second = single("s", torch.tensor([1.0]), all=torch.tensor([5.0]))
    joined = join_chunks([first, second], [2, 0, 1], [1, 1, 1])
    assert joined.total_B.tolist() == joined.components["s"].tolist() == [0.0, 1.0, 2.0]
    assert {name: values.tolist() for name, values in joined.extras.items()} == {"s/all": [2.0, 5.0, 1.0]}
    assert joined.token_rewards is None
    first.token_rewards = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    joined = join_chunks([first, second], [2, 0, 1], [2, 1, 3])
    assert [rewards.tolist() for rewards in joined.token_rewards] == [[3.0], [0.0, 0.0, 0.0], [1.0, 2.0]]
