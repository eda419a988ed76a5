"""Where the critic comes from: a reward model, a copy of the policy, a head on the policy's trunk. Each is reloadable."""
# ruff: noqa: F811 (fixtures)

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
)

from alignment.ppo.modules import TrunkActorCritic, hidden_states, response_logprobs
from alignment.ppo.rollout import make_batch, make_rollout
from alignment.reward.sources.protocol import single
from launch.errors import UserError
from tests.alignment.ppo_support import TokenReward, folders, make, run_updates, runtime, scored  # noqa: F401
from tests.support import save_policy, save_reward

ORIGINS = ["reward", "policy", "trunk"]
IDS = torch.tensor([[5, 6, 7, 8, 9, 1], [3, 4, 5, 1, 0, 0]])


def save(trainer, folder):
    for saved in trainer.roles.save(trainer.engine, folder):
        trainer.roles.tokenizer.save_pretrained(saved)
    return folder


def batch_of(trainer):
    """Everything but the first token of IDS is read as a response."""
    prompts = trainer.as_rows(["the"] * 2)
    for row, ids in zip(prompts, IDS, strict=True):
        row["prompt_ids"] = ids[:1].tolist()
    rollout = make_rollout(prompts, [ids[1:].tolist() for ids in IDS], [0, 1], 1, trainer.runtime)
    return make_batch(rollout, [0, 1], 0)


def values_of(trainer):
    with torch.no_grad():
        return trainer.learner.forward(batch_of(trainer))[2]


def plain_values(folder):
    """The value at every token but the last, read with nothing but transformers."""
    critic = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return critic.score(critic.base_model(IDS).last_hidden_state)[:, :-1, 0].flatten()


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_saved_critic_is_a_plain_model_and_starts_the_next_run(make, tmp_path, origin):
    trainer = make(critic_from=origin, updates=2, critic_learning_rate=1e-2)
    run_updates(trainer)
    out, values = save(trainer, tmp_path / "out"), values_of(trainer)
    assert values.std() > 1e-3
    assert torch.allclose(plain_values(out / "critic"), values, atol=1e-5)
    ours, theirs = trainer.roles.policy, AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert torch.allclose(ours(IDS).logits, theirs(IDS).logits, atol=1e-6)
    again = make(policy=str(out), critic=str(out / "critic"))
    assert torch.allclose(values_of(again), values, atol=1e-5)
    if origin == "trunk":  # the head alone, on the policy that it was trained with
        again = make(policy=str(out), critic=str(out / "critic"), critic_from="trunk")
        assert isinstance(again.engine.module, TrunkActorCritic)
        assert torch.allclose(values_of(again), values, atol=1e-5)


def test_one_pass_over_the_trunk_gives_both(make):
    trainer = make(critic_from="trunk")
    calls = []
    trainer.roles.policy.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    assert values_of(trainer).abs().max() == 0  # the head starts from zeros
    assert len(calls) == 1
    assert sum(p.numel() for p in trainer.engine.module.parameters()) == trainer.roles.policy.num_parameters() + 16


def flat(parameters):
    return torch.cat([p.detach().flatten().clone() for p in parameters])


def test_the_value_loss_reaches_the_trunk(make):
    """With the policy's loss taken out, the trunk moves with the value loss alone, and only once the head has learned."""
    found = {}
    for weight in (0.0, 1.0):
        trainer = make(TokenReward(), critic_from="trunk", value_coef=weight, kl_coef=0.0, updates=2)
        before = flat(trainer.roles.policy.parameters())
        for _ in range(2):
            rollout = scored(trainer)
            rollout.advantages_BT = torch.zeros_like(rollout.advantages_BT)
            trainer.update(rollout)
        found[weight] = (flat(trainer.roles.policy.parameters()) - before).abs().max()
    assert found[0.0] == 0 < 1e-4 < found[1.0]


def test_a_trunk_critic_warms_up_with_its_head_alone(make):
    trainer = make(critic_from="trunk", critic_warmup=1, updates=2, critic_learning_rate=1e-2)
    policy, head = flat(trainer.roles.policy.parameters()), flat(trainer.roles.score.parameters())
    trainer.update(scored(trainer))
    assert torch.equal(policy, flat(trainer.roles.policy.parameters()))
    assert not torch.equal(head, flat(trainer.roles.score.parameters()))
    state = trainer.engine.optimizer.state
    assert all(not state[p]["exp_avg"].any() for p in trainer.roles.policy.parameters())  # no momentum to start with
    trainer.update(scored(trainer))
    assert not torch.equal(policy, flat(trainer.roles.policy.parameters()))


@pytest.mark.parametrize("origin", ["reward", "trunk"])
def test_the_first_steps_after_the_warm_up_are_those_of_a_fresh_optimizer(make, origin):
    """Adam counts steps with zero gradients, too: after a warm-up its bias correction would be gone (2.8 times the rate)."""
    settings = dict(critic_from=origin, updates=40, epochs=1, minibatches=2, critic_learning_rate=1e-12)
    warmed, fresh = make(critic_warmup=20, **settings), make(**settings)
    for _ in range(20):
        warmed.update(scored(warmed))
    rollout = scored(warmed)
    fresh.engine.module.load_state_dict(warmed.engine.module.state_dict())
    fresh.engine.optimizer.state.clear()
    before = flat(warmed.roles.policy.parameters())
    for trainer in (warmed, fresh):
        trainer.learner.update(rollout, 20, 0.05)
    moved, expected = (flat(t.roles.policy.parameters()) - before for t in (warmed, fresh))
    assert expected.abs().max() > 1e-4
    assert torch.equal(moved, expected)


def test_the_head_has_its_own_learning_rate(make):
    groups = make(critic_from="trunk", critic_learning_rate=0.5).engine.optimizer.param_groups
    assert [(group["role"], group["lr"], len(group["params"])) for group in groups][1] == ("critic", 0.5, 1)
    assert groups[0]["lr"] == 1e-3


def test_a_trunk_critic_learns(make):
    settings = dict(updates=25, batch_size=32, epochs=4, minibatches=1, micro_batch_size=32, forward_batch_size=32)
    changes = dict(learning_rate=3e-3, critic_learning_rate=3e-2, missing_eos="none", kl_coef=0.01, value_clip=None)
    history = run_updates(make(TokenReward(), critic_from="trunk", **settings, **changes))
    assert history[-1]["critic/explained_variance"] > 0.3 > history[0]["critic/explained_variance"]
    assert history[-1]["reward/score"] > 2.5 > 1.0 > history[0]["reward/score"]


def test_a_head_that_is_not_plain(runtime):
    """Gemma caps its logits, so they come from the model's own forward; values still read the last hidden state."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=23, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, final_logit_softcapping=5.0, initializer_range=0.3,
    )  # fmt: skip
    policy = Gemma2ForCausalLM(config).eval()
    module = TrunkActorCritic(policy, torch.nn.Linear(16, 1, bias=False))
    before, targets = torch.arange(4), torch.tensor([4, 5, 6, 7])
    with torch.no_grad():
        logprobs, entropy, values = module(IDS, before, targets, 0.7)
        expected = response_logprobs(policy, IDS, before, targets, 0.7)
        assert torch.allclose(values, module.score(hidden_states(policy, IDS, before))[:, 0], atol=1e-5)
    assert torch.equal(logprobs, expected[0])
    assert torch.equal(entropy, expected[1])


def test_bad_critics(make, folders, tmp_path, monkeypatch):
    wide = save_reward(tmp_path / "wide", hidden_size=32)
    with pytest.raises(
        UserError, match=r"critic: .*wide has a head of shape \(1, 32\), the policy needs one of shape \(1, 16\)"
    ):
        make(critic_from="trunk", critic=str(wide))

    def refuse(*_, **__):
        raise ValueError("unrecognized configuration class")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_config", refuse)
    with pytest.raises(UserError, match=r"critic_from: transformers has no sequence classifier .* for qwen3"):
        make(critic_from="trunk")


def other_ids(folder):
    """The words of the tokenizer in a folder, as many, with other ids."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab["the"], vocab["of"] = vocab["of"], vocab["the"]
    path.write_text(json.dumps(content))
    return folder


def test_models_that_read_the_policys_ids_have_its_tokenizer(make, tmp_path):
    reward, reference = other_ids(save_reward(tmp_path / "reward")), other_ids(save_policy(tmp_path / "reference"))
    another = " has another tokenizer than the policy, whose token ids it would read; "
    with pytest.raises(UserError, match="^reference: .*/reference" + another + "give a reference with the policy's"):
        make(reference=str(reference))
    for origin in ORIGINS:
        with pytest.raises(
            UserError, match="^critic: .*/reward" + another + "give a critic with the policy's tokenizer"
        ):
            make(critic=str(reward), critic_from=origin)
    with pytest.raises(
        UserError, match="^reward: .*/reward" + another + "it may judge .*--critic_from policy or trunk"
    ):
        make(reward=str(reward))
    run_updates(make(reward=str(reward), critic_from="policy", updates=1))


def test_the_adaptive_kl_weight_waits_for_the_policy(make):
    """While the critic learns alone the KL is 0, which says nothing of the weight."""
    trainer = make(TokenReward(), critic_warmup=2, updates=4, kl_target=1.0, kl_horizon=16)
    weights = [metrics["kl/coef"] for metrics in run_updates(trainer)]
    assert weights[:3] == [0.05] * 3 and weights[3] == pytest.approx(0.05 * (1 - 0.2 * 8 / 16))


def test_without_a_spread_of_returns_there_is_no_explained_variance(make):
    class Same(TokenReward):
        def score(self, episodes):
            return single(self.name, torch.ones(len(episodes)))

    settings = dict(kl_coef=0.0, missing_eos="none", updates=1)
    (metrics,) = run_updates(make(Same(), **settings, value_lambda=1.0))
    assert "critic/explained_variance" not in metrics
    (metrics,) = run_updates(make(TokenReward(), **settings))
    assert metrics["critic/explained_variance"] < 1
