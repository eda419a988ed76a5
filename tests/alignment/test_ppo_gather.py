"""Rollouts of several ranks put together, and what a user may have changed on some of them before."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from alignment.ppo.rollout import Rollout, follow_changes
from launch.errors import UserError

TWICE = SimpleNamespace(
    world=2,
    device=torch.device("cpu"),
    gather=lambda tensor: torch.cat([tensor, tensor]),
    gather_objects=lambda value: [value, value],
)
"""Two ranks that have the same."""
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
EOS = 1


def full_rollout():
    """Everything that a rollout can hold, of two episodes."""
    tensors = {f.name: MASK * n for n, f in enumerate(dataclasses.fields(Rollout)) if f.name.endswith("_BT")}
    return Rollout(
        **{**tensors, "mask_BT": MASK},
        prompts=[{"prompt_ids": [3]}, {"prompt_ids": [4]}],
        responses=[[5, EOS], [5, 6, 7]],
        groups=[0, 1],
        finished_B=torch.tensor([1.0, 0.0]),
        scores_B=torch.tensor([0.5, 2.0]),
        components={"a": torch.tensor([0.5, 2.0])},
        logged={"importance/mean": 1.0},
        seconds={"rollout": 3.0},
    )


def test_all_tensors_but_scores_are_gathered_and_the_rest_is_kept():
    own = full_rollout()
    whole = own.gather(TWICE)
    for item in dataclasses.fields(Rollout):
        before, after = getattr(own, item.name), getattr(whole, item.name)
        if item.name in ("scores_B", "token_scores_BT"):
            assert after is None, item.name
        elif isinstance(before, torch.Tensor):
            assert torch.equal(after, torch.cat([before, before])), item.name
    assert (whole.prompts, whole.responses, whole.groups) == (own.prompts * 2, own.responses * 2, own.groups * 2)
    assert (whole.logged, whole.seconds, whole.components) == (own.logged, own.seconds, {})
    assert whole.gather(TWICE) is whole
    whole.take_scores(own, TWICE)
    assert whole.scores_B.tolist() == whole.components["a"].tolist() == [0.5, 2.0, 0.5, 2.0]
    assert torch.equal(whole.token_scores_BT, torch.cat([own.token_scores_BT] * 2))
    whole.take_scores(whole, TWICE)
    assert len(whole.scores_B) == 4


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"episodes": 3}, "score: processes have other numbers of episodes: 2, 3; give each as many"),
        ({"scores_B": None}, "score: some processes have scores_B and others have none; set it on all of them"),
        ({"importance_BT": None}, "score: some processes have importance_BT and others have none"),
        ({"engine_logprobs_BT": None}, "score: some processes have engine_logprobs_BT and others have none"),
    ],
)
def test_what_only_some_ranks_have_is_named_before_any_of_them_waits(theirs, message):
    def gather_objects(value):
        if not isinstance(value, dict):
            return [value, value]
        return [value, {name: given for name, given in {**value, **theirs}.items() if given is not None}]

    runtime = SimpleNamespace(**{**vars(TWICE), "gather_objects": gather_objects, "rank": 0})
    rollout = full_rollout()
    rollout.scores_B = [0.5, 2]  # as a user may give them
    with pytest.raises(UserError, match=message):
        follow_changes(rollout, EOS, runtime)
    assert torch.equal(rollout.mask_BT, MASK)


def test_rewards_of_single_tokens_do_not_outlive_a_change_of_lengths():
    rollout = dataclasses.replace(full_rollout(), engine_logprobs_BT=None)
    rollout.responses[1] = [5, 6]
    runtime = SimpleNamespace(**vars(TWICE), rank=0)
    with pytest.raises(UserError, match="other lengths than when their tokens were given rewards"):
        follow_changes(rollout, EOS, runtime)
    rollout.token_scores_BT = None
    follow_changes(rollout, EOS, runtime)
    assert rollout.mask_BT.tolist() == [[1, 1], [1, 1]]
