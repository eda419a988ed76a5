"""A loop of one's own: rollouts that are changed between phases, and mistakes, which are said in one sentence."""

import dataclasses

import pytest
import torch

from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_roles
from alignment.ppo.rollout import make_rollout
from alignment.ppo.trainer import PPOTrainer
from alignment.reward.sources.build import build_source
from launch.errors import UserError
from launch.files import write_json
from tests.alignment.ppo_support import PROMPTS, TokenReward, prompt_rows, scored
from tests.support import save_policy

EOS = 1


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
    with pytest.raises(UserError, match=r"^rollout: response 2 is empty; give it at least its EOS"):
        make_rollout(prompts, [[5, 1], []], [0, 1], 1, runtime)
    with pytest.raises(UserError, match=r"^rollout: there is no response on rank 0"):
        make_rollout([], [], [], 1, runtime)


# ---------------------------------------------------------------------------------------------- changed rollouts


def test_responses_may_be_changed_before_they_are_scored(make):
    trainer = make(source=TokenReward())
    rollout = trainer.rollout(trainer.next_prompts())
    rollout.responses[0], rollout.responses[1] = [7, 7, EOS], [7] * 9
    rollout = trainer.score(rollout)
    assert rollout.mask_BT.shape == (8, 9)
    assert rollout.mask_BT.sum(1)[:2].tolist() == [3, 9] and rollout.finished_B[:2].tolist() == [1, 0]
    assert rollout.scores_B[:2].tolist() == [2, 9]
    tokens = torch.tensor([rollout.prompt_ids[0] + rollout.responses[0]])
    with torch.no_grad():
        logits = trainer.roles.policy(tokens).logits[0, -4:-1] / 0.9
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor([[7], [7], [EOS]]))[:, 0]
    torch.testing.assert_close(rollout.logprobs_BT[0, :3], expected, atol=1e-5, rtol=0)
    trainer.update(trainer.advantages(rollout))


def test_an_empty_response_is_named(make):
    trainer = make()
    rollout = trainer.rollout(trainer.next_prompts())
    rollout.responses[2] = []
    with pytest.raises(UserError, match="rollout: response 3 is empty; give it at least its EOS"):
        trainer.score(rollout)


def test_lengths_may_not_change_where_others_sampled_with_log_probabilities(make):
    trainer = make()
    rollout = trainer.rollout(trainer.next_prompts())
    rollout.engine_logprobs_BT = torch.zeros_like(rollout.mask_BT)
    rollout.responses[0] = [*rollout.responses[0], 5]
    with pytest.raises(UserError, match=r"other lengths than when they were sampled.*engine_logprobs_BT to None"):
        trainer.score(rollout)


@pytest.mark.parametrize("phase", ["advantages", "update"])
def test_responses_may_not_change_their_lengths_after_they_were_scored(make, phase):
    trainer = make()
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    if phase == "update":
        rollout = trainer.advantages(rollout)
    rollout.responses[0] = [*rollout.responses[0], 5]
    before = [p.clone() for p in trainer.engine.module.parameters()]
    with pytest.raises(UserError, match=f"{phase}: responses have other lengths than when they were scored"):
        getattr(trainer, phase)(rollout)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.engine.module.parameters(), strict=True))


@pytest.mark.parametrize("given", [[1, 2, 3, 4, 5, 6, 7, 8], torch.arange(1, 9), torch.arange(1.0, 9.0).double()])
@pytest.mark.parametrize("phase", ["score", "advantages"])
def test_scores_may_be_any_eight_numbers(make, phase, given):
    trainer = make(missing_eos="none", kl_coef=0.0)
    rollout = trainer.rollout(trainer.next_prompts())
    if phase == "advantages":
        rollout = trainer.score(rollout)
    rollout.scores_B = given
    if phase == "score":
        rollout = trainer.score(rollout)
    rollout = trainer.advantages(rollout)
    torch.testing.assert_close(rollout.rewards_BT.sum(1), torch.arange(1.0, 9.0))
    metrics = {}
    trainer.sink = lambda number, found: metrics.update(found)
    trainer.log(rollout, trainer.update(rollout))
    assert metrics["reward/score"] == 4.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(1), "returned 1 values for 8 episodes"),
        (torch.ones(9), "returned 9 values for 8 episodes"),
        (torch.tensor(1.0), "which is no list"),
        (torch.tensor([1.0] * 7 + [torch.nan]), "row 8 of the episodes has nan"),
    ],
)
@pytest.mark.parametrize("phase", ["score", "advantages"])
def test_other_scores_are_refused_in_a_sentence(make, phase, given, message):
    trainer = make()
    rollout = trainer.rollout(trainer.next_prompts())
    if phase == "advantages":
        rollout = trainer.score(rollout)
    rollout.scores_B = given
    with pytest.raises(UserError, match=f"{phase}: the rollout's scores_B: .*{message}"):
        getattr(trainer, phase)(rollout)


# ---------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("the of and", "prompts: 'the of and' is one text; give a list of texts"),
        (["the", 2], "prompt 2: 2 is neither"),
        ([{"prompt": "the"}], "prompt 1: .* is neither a text nor a row with prompt_ids"),
        ([{"prompt_ids": [3]}, {"prompt_ids": [3, 99]}], "prompt 2: prompt_ids hold a token that is none of the policy's"),
        ([{"prompt_ids": [3, -1]}], "prompt 1: prompt_ids hold a token that is none"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_named(make, prompts, message):
    with pytest.raises(UserError, match=message):
        make().rollout(prompts)


def test_a_prompt_is_called_by_its_place_in_the_users_list(make):
    rows = [{"prompt_ids": ids} for ids in ([5] * 70, [3, 4], [5], [6])]
    for samples in (1, 2):
        trainer = make(samples_per_prompt=samples)
        with pytest.raises(UserError, match="prompt 1 has 70 tokens"):
            trainer.rollout(rows)
        with pytest.raises(UserError, match="prompt 3 is empty"):
            trainer.rollout([rows[1], rows[2], {"prompt_ids": []}, rows[3]])


def test_a_trainer_without_prompts_is_refused(folders, runtime):
    config = PPOConfig(policy=str(folders[0]), reward=str(folders[1]), prompts="-")
    roles = load_roles(config)
    source = build_source(config.sources, runtime.device, roles.tokenizer)
    with pytest.raises(UserError, match="PPOTrainer: there are no prompts; give at least one"):
        PPOTrainer(config, roles, source, [], runtime)


def test_a_word_for_a_number_is_refused(folders, runtime):
    config = PPOConfig(policy=str(folders[0]), reward=str(folders[1]), prompts="-", learning_rate="fast")
    roles = load_roles(config)
    with pytest.raises(UserError, match="PPOConfig: "):
        PPOTrainer(config, roles, TokenReward(), [{"prompt_ids": PROMPTS[0]}], runtime)


# ---------------------------------------------------------------------------------------------- models


def test_damaged_weights_are_what_is_named_and_not_the_kl(make):
    trainer = make()
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    rollout.ref_logprobs_BT[0, 0] = torch.nan
    with pytest.raises(
        UserError, match=r"a log-probability under the reference is nan.*weights of that model are damaged"
    ):
        trainer.advantages(rollout)
    rollout.logprobs_BT[0, 0] = torch.nan
    with pytest.raises(UserError, match="a log-probability under the policy is nan"):
        trainer.advantages(rollout)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, folders):
    policy = save_policy(tmp_path / "policy")
    for path in [*policy.glob("tokenizer*"), *policy.glob("special*")]:
        path.unlink()
    with pytest.raises(UserError, match=r"policy: .*this folder has no tokenizer; save the model's own into it"):
        load_roles(PPOConfig(policy=str(policy), reward=str(folders[1]), prompts="-"))
    write_json(policy / "tokenizer_config.json", {})  # there is one, and what is wrong with it is said elsewhere
    with pytest.raises(UserError) as caught:
        load_roles(PPOConfig(policy=str(policy), reward=str(folders[1]), prompts="-"))
    assert "has no tokenizer;" not in str(caught.value)


def test_ptx_data_without_texts_is_named(make, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the of"}\n')
    with pytest.raises(
        UserError, match=r"ptx_data: .*prompts.jsonl.*no field 'text'.*; give rows with a prompt and a completion"
    ):
        make(ptx_data=str(tmp_path / "prompts.jsonl"))
