"""What becomes of a rollout's scores: absurd ones are refused by name, and each is counted once."""

import math

import pytest
import torch

from alignment.ppo.controllers import RewardNormaliser
from alignment.ppo.shaping import LARGEST, check_sizes
from alignment.reward.sources.protocol import single
from launch.errors import UserError
from tests.alignment.ppo_support import run_updates, scored, weights


class Rewards:
    """A source: 0, 1, 2, 0, ... and `absurd` as the third episode's."""

    name = "absurd"

    def __init__(self, absurd):
        self.absurd = absurd

    def score(self, episodes):
        rewards_B = torch.arange(len(episodes), dtype=torch.float32) % 3
        rewards_B[2] = self.absurd
        return single(self.name, rewards_B)


ABSURD = [
    {},
    {"estimator": "reinforce++"},
    {"estimator": "grpo", "samples_per_prompt": 2},
    {"whiten_rewards": True},
    {"normalise_scores": True},
    {"normalise_scores": True, "score_clip": 5.0},
]


@pytest.mark.parametrize("changes", ABSURD)
def test_an_absurd_reward_is_named_before_any_weight_moves(make, changes):
    """Finite, but its square is not: the losses would be infinite, or all other episodes' advantages 0."""
    trainer = make(Rewards(-1e30), missing_eos="none", **changes)
    before = weights(trainer)
    with pytest.raises(UserError, match=r"advantages: a reward is -1e\+30, .*; mend the source of the rewards"):
        run_updates(trainer)
    assert torch.equal(weights(trainer), before) and trainer.normaliser == RewardNormaliser()


def test_what_is_clipped_or_replaced_does_no_harm(make):
    run_updates(make(Rewards(1e30), score_clip=5.0, missing_eos="none", updates=1))
    trainer = make(Rewards(1e30))
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    rollout.finished_B[2] = 0
    assert trainer.advantages(rollout).rewards_BT.abs().max() < 10


def test_large_rewards_are_learned_from(make):
    for metrics in run_updates(make(Rewards(LARGEST), missing_eos="none", updates=2)):
        assert all(map(math.isfinite, metrics.values()))


def test_a_kl_penalty_that_is_infinite_is_named(make):
    trainer = make(kl_kind="k3")
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    rollout.logprobs_BT = rollout.ref_logprobs_BT - 200 * rollout.mask_BT
    with pytest.raises(UserError, match=r"advantages: a KL penalty of a token is inf, .* lower learning_rate"):
        trainer.advantages(rollout)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(value):
    with pytest.raises(UserError, match=f"a reward is {value}"):
        check_sizes({"value": torch.ones(2), "nothing": None, "reward": torch.tensor([[2.0, value], [1.0, -3.0]])})


# ---------------------------------------------------------------------------------------------- counted once


def test_advantages_can_be_computed_twice(make):
    trainer = make(normalise_scores=True)
    rollout = scored(trainer)
    first, state = rollout.advantages_BT, trainer.normaliser.state_dict()
    assert torch.equal(trainer.advantages(rollout).advantages_BT, first)
    assert trainer.normaliser.state_dict() == state and state["count"] == len(rollout)


def test_scores_that_were_changed_count_instead_of_the_old_ones(make):
    trainer = make(normalise_scores=True)
    trainer.update(scored(trainer))
    expected = RewardNormaliser(**trainer.normaliser.state_dict())
    rollout = scored(trainer)
    rollout.scores_B = rollout.scores_B * 3 + 1
    trainer.advantages(rollout)
    expected.update(rollout.total_scores_B)
    assert trainer.normaliser == expected and expected.count == 2 * len(rollout)


def test_a_rollout_counts_again_after_a_return_to_the_state_before_it(make):
    trainer = make(normalise_scores=True)
    before = trainer.normaliser.state_dict()
    rollout = scored(trainer)
    first, after = rollout.advantages_BT, trainer.normaliser.state_dict()
    trainer.normaliser.load_state_dict(before)
    assert torch.equal(trainer.advantages(rollout).advantages_BT, first)
    assert trainer.normaliser.state_dict() == after


def test_a_rollout_before_the_newest_is_not_counted_twice(make):
    trainer = make(normalise_scores=True)
    old = scored(trainer)
    scored(trainer)
    state = trainer.normaliser.state_dict()
    with pytest.raises(UserError, match="advantages: normalise_scores has counted this rollout's scores and those of"):
        trainer.advantages(old)
    assert trainer.normaliser.state_dict() == state
    old.counted = None
    trainer.advantages(old)
    assert trainer.normaliser.count == 3 * len(old)
