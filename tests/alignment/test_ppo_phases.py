"""Mistakes in a loop of one's own: a phase out of its order, or given what it cannot use, says so in one sentence."""

import dataclasses

import pytest

from alignment.ppo.models import load_roles
from alignment.ppo.rollout import make_rollout
from alignment.ppo.trainer import PPOTrainer
from launch.errors import UserError
from tests.alignment.ppo_support import TokenReward, prompt_rows, scored


def test_phases_out_of_order_are_named(make):
    trainer = make(minibatches=3, batch_size=6)
    rollout = trainer.rollout(trainer.next_prompts())
    with pytest.raises(UserError, match=r"^advantages: .* call score\(rollout\) before$"):
        trainer.advantages(rollout)
    with pytest.raises(UserError, match=r"^update: .* call advantages\(rollout\) before$"):
        trainer.update(trainer.score(rollout))
    odd = trainer.advantages(trainer.score(trainer.rollout(trainer.next_prompts()[:4])))
    with pytest.raises(UserError, match=r"^update: 4 episodes cannot be cut into 3 minibatches; give a rollout of"):
        trainer.update(odd)
    with pytest.raises(UserError, match=r"^rollout: 0 episodes cannot be split over 1 processes; give prompts"):
        trainer.rollout([])
    assert trainer.update_number == 0
    trainer.update(scored(trainer))


def test_a_trainer_without_a_source_scores_what_has_scores_alone(make):
    made = make(critic_from="policy")
    trainer = PPOTrainer(made.config, load_roles(made.config), None, prompt_rows(), made.runtime)
    with pytest.raises(
        UserError, match=r"^score: the trainer has no source of reward; give PPOTrainer a source, or set"
    ):
        trainer.score(trainer.rollout(trainer.next_prompts()))
    rollout = trainer.rollout(trainer.next_prompts())
    rollout.scores_B = rollout.mask_BT.sum(1)
    trainer.update(trainer.advantages(trainer.score(rollout)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "gea"}, "estimator: 'gea' is not one of gae, grpo"),
        ({"kl_in": "los"}, "kl_in: 'los' is not one of reward, loss; give one of them"),
        ({"batch_size": 8, "minibatches": 3}, "minibatches: 3 does not divide batch_size 8; choose a divisor"),
        ({"clip": -1.0}, "clip: -1.0 is"),
    ],
)
def test_a_config_made_in_python_is_checked(make, changes, message):
    made = make()
    config = dataclasses.replace(made.config, **changes)
    with pytest.raises(UserError, match=message):
        PPOTrainer(config, made.roles, made.source, prompt_rows(), made.runtime)


def test_a_typo_in_the_estimator_is_named_before_models_are_loaded(make):
    config = dataclasses.replace(make().config, estimator="gea")
    with pytest.raises(UserError, match="estimator: 'gea' is not one of gae, grpo"):
        load_roles(config)


def test_what_is_given_in_python_need_not_be_in_the_config(make):
    made = make(critic_from="policy")
    config = dataclasses.replace(made.config, prompts="", reward=None)
    trainer = PPOTrainer(config, load_roles(config), TokenReward(), prompt_rows(), made.runtime)
    trainer.update(scored(trainer))


def test_an_empty_response_is_refused(runtime):
    prompts = [{"prompt_ids": [3]}, {"prompt_ids": [4]}]
    with pytest.raises(UserError, match=r"^rollout: response 1 is empty; give it at least its EOS"):
        make_rollout(prompts, [[5, 1], []], [0, 1], 1, runtime)
    with pytest.raises(UserError, match=r"^rollout: there is no response on rank 0"):
        make_rollout([], [], [], 1, runtime)
