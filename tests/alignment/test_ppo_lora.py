"""PPO with LoRA: policy, critic, reference and reward model are adapters of one base."""
# ruff: noqa: F811 (fixtures)

import math

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import AutoModelForCausalLM

from alignment.ppo.config import PPOConfig, SharedLora
from alignment.ppo.modules import response_logprobs
from alignment.ppo.options import EvaluationOptions
from alignment.ppo.rewards import build_rewards
from alignment.ppo.shared import SharedRoles
from alignment.reward.model import RewardModel
from alignment.reward.sources.config import SourceConfig
from alignment.reward.sources.protocol import Episodes
from launch.checkpoint import CheckpointStore
from launch.config import build
from launch.errors import UserError
from tests.alignment.ppo_support import TokenReward, make, run_updates, runtime, scored  # noqa: F401
from tests.alignment.test_ppo_critics import IDS, batch_of, flat, plain_values, save, values_of
from tests.support import save_adapter, save_policy, save_reward

ORIGINS = ["reward", "policy", "trunk"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A base, and on it an SFT adapter and two reward adapters."""
    root = tmp_path_factory.mktemp("lora")
    base = save_policy(root / "base")
    return {
        "base": base,
        "sft": save_adapter(root / "sft", base, seed=2),
        "reward": save_adapter(root / "reward", base, seed=3, head=True),
        "other": save_adapter(root / "other", base, seed=4, rank=2, head=True),
        "full": save_reward(root / "full"),
    }


@pytest.fixture(scope="module")
def folders(paths):
    """What `make` trains on unless told otherwise."""
    return paths["sft"], paths["reward"]


@pytest.fixture
def share(make):
    """share(**changes) -> a trainer with LoRA."""
    return lambda source=None, rank=6, **changes: make(source, lora=SharedLora(rank=rank), **changes)


def logprobs(model, batch, temperature=0.9):
    with torch.no_grad():
        return response_logprobs(model, batch.tokens_bS, batch.before_N, batch.targets_N, temperature)[0]


def reference_logprobs(trainer, batch):
    with torch.no_grad():
        return trainer.reference(batch.tokens_bS, batch.before_N, batch.targets_N, 0.9)


# ------------------------------------------------------------------------------------------------ the roles


def test_b18_the_reference_is_the_sft_adapter_and_stays_it(share, paths):
    """Not the bare base, which is what switching the policy's adapter off gives (trl#495, trl#3196)."""
    trainer = share()
    batch = batch_of(trainer)
    sft = logprobs(AutoPeftModelForCausalLM.from_pretrained(str(paths["sft"])).get_base_model().eval(), batch)
    bare = logprobs(AutoModelForCausalLM.from_pretrained(paths["base"]).eval(), batch)
    assert (sft - bare).abs().max() > 0.5
    assert torch.allclose(reference_logprobs(trainer, batch), sft, atol=1e-5)
    before = trainer.learner.forward(batch)[0]
    assert torch.allclose(before, sft, atol=1e-5)  # the policy starts there, too
    run_updates(trainer)
    assert torch.allclose(reference_logprobs(trainer, batch), sft, atol=1e-5)
    assert not torch.allclose(trainer.learner.forward(batch)[0], before, atol=1e-2)


def test_the_reference_of_a_full_sft_model_is_the_bare_base(share, paths):
    trainer = share(policy=str(paths["base"]), critic_from="policy")
    batch = batch_of(trainer)
    bare = logprobs(AutoModelForCausalLM.from_pretrained(paths["base"]).eval(), batch)
    run_updates(trainer)
    assert torch.equal(reference_logprobs(trainer, batch), bare)


def test_another_reference_on_the_base(share, paths):
    trainer = share(reference=str(paths["base"]))
    bare = logprobs(AutoModelForCausalLM.from_pretrained(paths["base"]).eval(), batch_of(trainer))
    assert torch.equal(reference_logprobs(trainer, batch_of(trainer)), bare)


def test_the_first_pass_has_ratio_one_and_no_divergence(share):
    trainer = share(epochs=1, minibatches=1)
    rollout = scored(trainer)
    metrics = trainer.log(rollout, trainer.update(rollout))
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-10)
    assert metrics["policy/ratio"] == metrics["policy/ratio_max"] == 1
    assert metrics["kl/k1"] == pytest.approx(0, abs=1e-4)
    assert metrics["kl/k3"] == pytest.approx(0, abs=1e-6)


def test_the_judge_is_the_reward_adapter_on_the_same_base(share, paths):
    trainer = share()
    run_updates(trainer)  # whatever the policy has become
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    judge = RewardModel.from_pretrained(paths["reward"], device="cpu")
    for row, ids in enumerate(rollout.sequences):
        ids = torch.tensor([ids])
        expected = judge.score_tokens(ids, torch.ones_like(ids)).item()
        assert float(rollout.scores_B[row]) == pytest.approx(expected, abs=1e-4)


def test_ensembles_and_other_sources_beside_the_judge(share, paths):
    rewards = {
        "both": SourceConfig(ensemble=[str(paths["reward"]), str(paths["other"])], aggregate="min"),
        "full": SourceConfig(model=str(paths["full"]), weight=0.5),
        "brief": SourceConfig(rule="length", soft=2, hard=9),
        "one": SourceConfig(model=str(paths["other"]), weight=-1.0),
    }
    trainer = share(reward=None, rewards=rewards, critic_from="policy")
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    ids = torch.tensor([rollout.sequences[0]])
    score = {
        name: RewardModel.from_pretrained(paths[name], device="cpu").score_tokens(ids, torch.ones_like(ids)).item()
        for name in ("reward", "other", "full")
    }
    assert next(iter(rollout.components)) == "both"
    found = {name: float(values_B[0]) for name, values_B in rollout.components.items()}
    assert found["both"] == pytest.approx(min(score["reward"], score["other"]), abs=1e-5)
    assert found["full"] == pytest.approx(score["full"], abs=1e-5)
    assert found["one"] == pytest.approx(score["other"], abs=1e-5)
    total = found["both"] + 0.5 * found["full"] + found["brief"] - found["one"]
    assert float(rollout.scores_B[0]) == pytest.approx(total, abs=1e-5)


def test_the_gold_judge_shares_the_base_too(share, paths, runtime):
    options = EvaluationOptions(every=1, prompts="-", gold=str(paths["other"]))
    trainer = share(evaluation=options)
    judge = build_rewards(trainer.config, trainer.roles, runtime.device, sources=options.judge)
    assert trainer.roles.rewards.keys() == {str(paths["reward"]), str(paths["other"])}
    model = judge.sources["model"][1].judge.model
    assert model.adapted is trainer.roles.local and list(trainer.source.sources) == ["model"]
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    ids = torch.tensor([rollout.sequences[0]])
    alone = RewardModel.from_pretrained(paths["other"], device="cpu").score_tokens(ids, torch.ones_like(ids))
    found_B = judge.score(Episodes.decode(trainer.roles.tokenizer, rollout.prompts, rollout.responses)).total_B
    assert float(found_B[0]) == pytest.approx(float(alone), abs=1e-4)
    assert abs(float(found_B[0]) - float(rollout.scores_B[0])) > 1e-3  # which the training reward gave


def test_the_critic_starts_as_the_reward_adapter(share, paths):
    judge = RewardModel.from_pretrained(paths["reward"], device="cpu").model
    with torch.no_grad():
        expected = judge.score(judge.base_model(IDS).last_hidden_state)[:, :-1, 0].flatten()
    assert torch.allclose(values_of(share()), expected, atol=1e-5)


def test_what_is_trained_and_what_is_not(share, paths):
    trainer = share(critic_learning_rate=1e-2)
    module = trainer.engine.module
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    run_updates(trainer)
    assert flags == {name: p.requires_grad for name, p in module.named_parameters()}
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name in before if ".policy." in name or ".critic." in name or name == "score.weight"}
    assert changed == trained == {name for name, flag in flags.items() if flag}
    in_optimizer = {id(p) for group in trainer.engine.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in module.parameters() if p.requires_grad}


def test_one_copy_of_the_base(share, paths):
    """Weights in the engine: the base, four adapters (B's and A's, of rank 6, 6, 4, 4) and the value head."""
    trainer = share()
    base = AutoModelForCausalLM.from_pretrained(paths["base"])
    sides = sum(sum(m.weight.shape) for n, m in base.named_modules() if n.endswith("_proj"))
    expected = base.num_parameters() + sides * (6 + 6 + 4 + 4) + 16
    assert sum(p.numel() for p in trainer.engine.module.parameters()) == expected
    judge = trainer.source.sources["model"][1].judge.model
    assert [p.numel() for p in judge.parameters()] == [16]
    assert judge.adapted.model is trainer.engine.module.policy is trainer.sampler.sync()


# ------------------------------------------------------------------------------------------------ training


def test_a_merged_copy_samples_the_same(share, make):
    trainer = share(updates=4)
    trainer.updates = 3  # one is made below
    run_updates(trainer)
    rollout = trainer.rollout(trainer.next_prompts())
    trainer.roles.merged_sampler = True
    trainer.sampler = trainer.roles.make_sampler(trainer.engine)
    assert trainer.sampler.sync() is not trainer.roles.policy
    assert not any("lora" in name for name, _ in trainer.sampler.sync().named_parameters())
    assert trainer.rollout(trainer.next_prompts()).responses == rollout.responses
    trainer.update(scored(trainer))
    weights = dict(trainer.sampler.sync().named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in trainer.roles.policy_weights())


@pytest.mark.parametrize("changes", [{"micro_batch_size": 1}, {"forward_batch_size": 8}])
def test_results_do_not_depend_on_how_a_batch_is_cut(share, changes):
    for a, b in zip(run_updates(share()), run_updates(share(**changes)), strict=True):
        for name in a:
            assert b[name] == pytest.approx(a[name], abs=1e-4, rel=1e-3), name


@pytest.mark.parametrize("origin", ["reward", "trunk"])
def test_it_learns_a_reward_that_can_be_had(share, paths, origin):
    settings = dict(updates=25, batch_size=32, minibatches=1, micro_batch_size=32, forward_batch_size=32, epochs=4)
    changes = dict(learning_rate=2e-2, missing_eos="none", kl_coef=0.01, critic_from=origin)
    history = run_updates(share(TokenReward(), **settings, **changes))
    assert history[-1]["reward/score"] > 3.0 > 1.0 > history[0]["reward/score"]
    assert history[-1]["kl/k1"] > 1.0


def test_an_update_follows_that_of_the_full_factors(share, paths):
    """One step on one layer against autograd by hand: the gradient in B is scale * (dL/dW) A', of the plain model."""
    trainer = share(rank=4)
    layer = trainer.roles.trained.layers["model.layers.1.mlp.down_proj"]
    batch = batch_of(trainer)
    plain = AutoModelForCausalLM.from_pretrained(paths["base"])
    plain.load_state_dict(dict(trainer.roles.policy_weights()))
    response_logprobs(plain, *vars(batch).values(), 0.9)[0].sum().backward()
    trainer.learner.forward(batch)[0].sum().backward()
    grad = plain.model.layers[1].mlp.down_proj.weight.grad
    scale, a, b = layer.scaling["policy"], layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    assert torch.allclose(b.grad, scale * grad @ a.T, atol=1e-4, rtol=1e-3)
    assert torch.allclose(a.grad, scale * b.T @ grad, atol=1e-4, rtol=1e-3)
    assert layer.lora_B["critic"].weight.grad is None


def test_a_trunk_critic_warms_up_with_its_head_alone(share):
    trainer = share(critic_from="trunk", critic_warmup=1, updates=2, critic_learning_rate=1e-2)
    policy = flat(trainer.roles.trained.parameters("policy"))
    trainer.update(scored(trainer))
    assert torch.equal(policy, flat(trainer.roles.trained.parameters("policy")))
    assert trainer.roles.score.weight.abs().max() > 0
    trainer.update(scored(trainer))
    assert not torch.equal(policy, flat(trainer.roles.trained.parameters("policy")))


def test_estimators_without_a_critic(share):
    trainer = share(estimator="grpo", samples_per_prompt=4)
    assert trainer.roles.score is None
    assert "critic" not in trainer.roles.trained.names
    assert all(math.isfinite(value) for metrics in run_updates(trainer) for value in metrics.values())


def test_a_checkpoint_leaves_the_base_out_and_resumes_to_the_bit(share, runtime, tmp_path):
    whole = share(updates=4)
    history = run_updates(whole)
    half = share(updates=4)
    store = CheckpointStore(tmp_path / "checkpoints", runtime, 2)
    half.sink = lambda number, metrics: half.save(store) if number == 2 else None
    half.train()
    state = store.latest().state()["engines"]["engine"]["module"]
    assert state and not any("base_layer" in name or "reference" in name or "reward" in name for name in state)
    again = share(updates=4)
    again.load(store.latest())
    assert run_updates(again) == history[2:]
    for a, b in zip(whole.engine.module.parameters(), again.engine.module.parameters(), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------------ the artefact


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_artefact_is_plain_and_its_adapters_go_on(share, tmp_path, paths, origin):
    trainer = share(critic_from=origin, updates=2, critic_learning_rate=1e-2)
    run_updates(trainer)
    out, values, policy = save(trainer, tmp_path / "out"), values_of(trainer), trainer.roles.policy
    with torch.no_grad():
        logits = policy(IDS).logits
        for theirs in (
            AutoModelForCausalLM.from_pretrained(out),
            AutoPeftModelForCausalLM.from_pretrained(str(out / "adapter")),
        ):
            assert torch.allclose(logits, theirs.eval()(IDS).logits, atol=1e-5)
    assert torch.allclose(plain_values(out / "critic"), values, atol=1e-5)
    head = AutoPeftModelForSequenceClassification.from_pretrained(str(out / "critic" / "adapter"), num_labels=1).eval()
    with torch.no_grad():
        hidden = head.get_base_model().model(IDS).last_hidden_state
        assert torch.allclose(head.get_base_model().score(hidden)[:, :-1, 0].flatten(), values, atol=1e-5)
    again = share(policy=str(out), critic=str(out / "critic"))  # the adapters below, on the base that the reward shares
    assert torch.allclose(values_of(again), values, atol=1e-5)
    assert torch.allclose(again.learner.forward(batch_of(again))[0], logprobs(policy, batch_of(again)), atol=1e-5)
    assert isinstance(again.source.sources["model"][1].judge.model.adapted, type(again.roles.trained))


def test_a_saved_critic_serves_a_run_without_lora(share, make, tmp_path):
    trainer = share(updates=1)
    run_updates(trainer)
    out = save(trainer, tmp_path / "out")
    again = make(policy=str(out), critic=str(out / "critic"))
    assert not isinstance(again.roles, SharedRoles)
    assert torch.allclose(values_of(again), values_of(trainer), atol=1e-5)
    assert torch.allclose(
        again.learner.forward(batch_of(again))[0], trainer.learner.forward(batch_of(trainer))[0], atol=1e-5
    )


def test_tied_embeddings_stay_tied(share, tmp_path):
    base = save_policy(tmp_path / "tied", tie_word_embeddings=True)
    sft, reward = save_adapter(tmp_path / "sft", base), save_adapter(tmp_path / "reward", base, head=True)
    trainer = share(policy=str(sft), reward=str(reward), updates=1)
    run_updates(trainer)
    out = save(trainer, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(out)
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, trainer.roles.policy(IDS).logits, atol=1e-5)
    assert torch.allclose(plain_values(out / "critic"), values_of(trainer), atol=1e-5)


# ------------------------------------------------------------------------------------------------ errors


def test_a_full_reward_model_stands_beside_the_base(share, paths):
    trainer = share(reward=str(paths["full"]), critic_from="trunk")
    assert not trainer.roles.rewards
    run_updates(trainer)
    with pytest.raises(
        UserError, match=r"critic_from: .*full is no adapter of the policy's base .*; choose --critic_from"
    ):
        share(reward=str(paths["full"]))


def test_what_does_not_share_the_base_is_named(share, paths, tmp_path):
    other = save_policy(tmp_path / "base", seed=9)
    with pytest.raises(UserError, match=r"reference: .* is not on the policy's base .*base"):
        share(reference=str(other))
    with pytest.raises(UserError, match=r"critic: .*full is no adapter of the policy's base"):
        share(critic=str(paths["full"]))
    with pytest.raises(UserError, match=r"critic: .*sft: an adapter with 0 labels, a reward model or critic has one"):
        share(critic=str(paths["sft"]))
    with pytest.raises(UserError, match=r"lora.rank: 3 is below the rank 4 of the adapter .*sft"):
        share(rank=3)


def test_the_config_takes_the_group(paths):
    values = {"policy": "p", "reward": "r", "prompts": "x", "lora": {"rank": "8", "targets": "q_proj,v_proj"}}
    lora = build(PPOConfig, values, "recipe.yaml").lora
    assert (lora.rank, lora.scale, lora.targets) == (8, 2.0, ["q_proj", "v_proj"])
    assert build(PPOConfig, {**values, "lora": "null"}, "recipe.yaml").lora is None
