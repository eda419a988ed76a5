"""The PPO trainer: invariants of its phases, on tiny random models."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.ppo import logprobs
from alignment.ppo import objectives as ppo
from alignment.ppo.config import PPOConfig
from alignment.ppo.controllers import KLController
from alignment.ppo.models import load_roles
from alignment.ppo.modules import response_logprobs, response_values
from alignment.ppo.options import KLOptions, MonitorsOptions
from alignment.ppo.rollout import make_batch, make_rollout, plan_parts
from alignment.reward.sources.build import build_source
from launch.config import build
from launch.errors import UserError
from tests.alignment.ppo_support import TokenReward, run_updates, scored, weights
from tests.support import save_policy


def test_first_pass_has_ratio_one_and_no_divergence(make):
    trainer = make()
    rollout = scored(trainer)
    rows = [0, 1, 2, 3]
    logprobs, _, values = trainer.learner.forward(make_batch(rollout, rows, 0))
    assert torch.allclose(logprobs, rollout.flat(rollout.logprobs_BT, rows), atol=1e-6)
    assert torch.allclose(values, rollout.flat(rollout.values_BT, rows), atol=1e-5)
    metrics = make(epochs=1, minibatches=1).update(rollout)
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-10)
    assert metrics["policy/clip_fraction"] == 0
    # scoring and training may pad a row to another width, which rounds otherwise
    assert metrics["policy/ratio"] == pytest.approx(1, abs=1e-6)
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-6)
    assert metrics["policy/effective_samples"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("precision", "forward"), [("fp32", 4), ("fp32", 64), ("bf16", 4), ("bf16", 64)])
def test_the_ratio_is_exactly_one_where_the_passes_are_cut_alike(make, runtime, monkeypatch, precision, forward):
    """Scoring is cut as the update is, whatever `forward_batch_size` is; and the reference as the policy."""
    monkeypatch.setattr(runtime, "precision", precision)
    settings = dict(epochs=1, minibatches=1, batch_size=64, max_new_tokens=24)
    trainer = make(micro_batch_size=4, forward_batch_size=forward, **settings)
    rollout = scored(trainer)
    metrics = trainer.update(rollout)
    assert (metrics["policy/ratio"], metrics["policy/ratio_max"], metrics["policy/approx_kl"]) == (1, 1, 0)
    assert torch.equal(rollout.logprobs_BT, rollout.ref_logprobs_BT)


@pytest.mark.parametrize("coef", [0.0, 0.01])
def test_the_entropy_has_a_gradient_only_where_the_loss_has_it(make, monkeypatch, coef):
    """One of zeros would cost as much as any other: passes over all logits."""
    asked = []

    def watch(module, name, place):
        plain = getattr(module, name)

        def watched(*arguments):
            asked.append(arguments[place] is not None)
            return plain(*arguments)

        monkeypatch.setattr(module, name, watched)

    watch(logprobs, "logit_slopes", 5)
    watch(logprobs.native, "block_slopes", 8)
    trainer = make(entropy_coef=coef)
    trainer.update(scored(trainer))
    assert asked and set(asked) == {coef > 0}


def test_kl_stays_zero_without_learning(make):
    history = run_updates(make(learning_rate=0.0))
    assert [abs(m["kl/k1"]) < 1e-5 and m["kl/k3"] < 1e-5 for m in history] == [True] * 3
    assert all(m["policy/approx_kl"] < 1e-9 for m in history)


@pytest.mark.parametrize(
    "changes", [{"micro_batch_size": 4}, {"micro_batch_size": 1}, {"forward_batch_size": 1}, {"forward_batch_size": 8}]
)
def test_results_do_not_depend_on_how_a_batch_is_cut(make, changes):
    reference, changed = make(), make(**changes)
    history, other = run_updates(reference), run_updates(changed)
    for a, b in zip(history, other, strict=True):
        for name in a:
            assert b[name] == pytest.approx(a[name], abs=1e-5, rel=1e-5), name
    assert torch.allclose(weights(reference), weights(changed), atol=1e-5)


def rollout_of(pairs, runtime):
    prompts, responses = zip(*pairs, strict=True)
    return make_rollout([{"prompt_ids": p} for p in prompts], responses, range(len(pairs)), 1, runtime)


def test_results_do_not_depend_on_padding(folders, runtime):
    policy, reward = folders
    actor = AutoModelForCausalLM.from_pretrained(policy).eval()
    critic = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    pair, longer = ([5, 6, 7], [8, 9, 1]), ([4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 1])
    alone = make_batch(rollout_of([pair], runtime), [0], 0)
    padded = make_batch(rollout_of([pair, longer], runtime), [0, 1], 0)
    assert padded.tokens_bS.shape[1] > alone.tokens_bS.shape[1]
    with torch.no_grad():
        for model, read in (
            (actor, lambda b: response_logprobs(actor, *vars(b).values(), 0.7)[0]),
            (critic, lambda b: response_values(critic, b.tokens_bS, b.before_N)),
        ):
            assert torch.allclose(read(alone), read(padded)[:3], atol=1e-5), type(model)


def test_logprobs_entropy_and_values_against_the_definition(folders, runtime):
    policy, reward = folders
    actor = AutoModelForCausalLM.from_pretrained(policy).eval()
    critic = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    tokens = torch.tensor([[5, 6, 7, 8, 9, 1]])
    batch = make_batch(rollout_of([([5, 6, 7, 8], [9, 1])], runtime), [0], 0)
    with torch.no_grad():
        logprobs, entropy = response_logprobs(actor, batch.tokens_bS, batch.before_N, batch.targets_N, 0.5)
        everything = torch.log_softmax(actor(tokens).logits[0] / 0.5, -1)
        assert torch.allclose(logprobs, torch.stack([everything[3, 9], everything[4, 1]]), atol=1e-5)
        assert torch.allclose(entropy, -(everything.exp() * everything).sum(-1)[3:5], atol=1e-5)
        value = response_values(critic, batch.tokens_bS, batch.before_N)[1]
        assert value == pytest.approx(float(critic(tokens[:, :5]).logits), abs=1e-5)  # the head at the token before


def test_a_head_that_is_not_plain_pays_the_full_logits_and_agrees(folders, runtime):
    actor = AutoModelForCausalLM.from_pretrained(folders[0]).eval()
    batch = make_batch(rollout_of([([5, 6, 7, 8], [9, 1]), ([3], [4, 5, 6])], runtime), [0, 1], 0)
    with torch.no_grad():
        plain = response_logprobs(actor, *vars(batch).values(), 0.5)
        actor.config.logit_scale = 2.0  # as Cohere's config has it; Qwen's forward does not read it
        full = response_logprobs(actor, *vars(batch).values(), 0.5)
    for a, b in zip(plain, full, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_score_is_the_reward_model_on_the_real_tokens(make, folders):
    trainer = make()
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    judge = AutoModelForSequenceClassification.from_pretrained(folders[1]).eval()
    for row, real in enumerate(rollout.sequences):
        with torch.no_grad():
            assert float(rollout.scores_B[row]) == pytest.approx(float(judge(torch.tensor([real])).logits), abs=1e-5)


def test_response_mask_holds_eos_and_nothing_after_it(runtime):
    rollout = rollout_of([([3, 4], [6, 1]), ([5], [7, 8, 9])], runtime)
    assert rollout.mask_BT.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert rollout.finished_B.tolist() == [1, 0]
    batch = make_batch(rollout, [1, 0], 0)
    assert batch.tokens_bS.tolist() == [[5, 7, 8, 9], [3, 4, 6, 1]]
    assert batch.before_N.tolist() == [0, 1, 2, 5, 6]  # of the flattened rows: the token before each response token
    assert batch.targets_N.tolist() == [7, 8, 9, 6, 1]


def test_flat_and_spread_are_inverse(runtime):
    rollout = rollout_of([([3, 4], [6, 1]), ([5], [7, 8, 9]), ([5], [1])], runtime)
    values = torch.arange(9.0).reshape(3, 3)
    assert rollout.flat(values, [1, 2]).tolist() == [3, 4, 5, 6]
    assert rollout.spread(rollout.flat(values, [1, 2]), [1, 2]).tolist() == [[3, 4, 5], [6, 0, 0]]


def test_advantages_are_global_and_whitened(make):
    rollout = scored(make())
    kept = rollout.advantages_BT[rollout.mask_BT.bool()]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-6)
    assert float(kept.std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    kl = ppo.kl_estimate(rollout.logprobs_BT, rollout.ref_logprobs_BT)
    scores = ppo.apply_missing_eos(rollout.scores_B, rollout.finished_B, "replace", 1.0)
    total = (rollout.rewards_BT * rollout.mask_BT).sum(1)
    assert torch.allclose(total, scores - 0.05 * (kl * rollout.mask_BT).sum(1), atol=1e-5)


def test_scores_that_are_given_are_kept_and_all_else_is_filled_in(make):
    """What docs/ppo.md promises to those who set `scores_B` between `rollout` and `score`."""
    trainer, plain = make(), make()
    trainer.source.score = lambda episodes: pytest.fail("the source was asked")
    rollout = trainer.rollout(trainer.next_prompts())
    rollout.scores_B = torch.arange(8.0)
    rollout = trainer.score(rollout)
    expected = plain.score(plain.rollout(plain.next_prompts()))
    assert rollout.scores_B.tolist() == list(range(8)) and rollout.components == {}
    for name in ("logprobs_BT", "ref_logprobs_BT", "values_BT"):
        assert torch.equal(getattr(rollout, name), getattr(expected, name)), name
    metrics = trainer.log(rollout, trainer.update(trainer.advantages(trainer.score(rollout))))
    assert metrics["reward/score"] == 3.5


def test_prompts_are_shuffled_without_loss(make):
    trainer = make(batch_size=8)
    seen = []
    for trainer.update_number in range(13):  # 104 episodes: 8 whole passes over 13 prompts
        seen += [row["number"] for row in trainer.next_prompts()]
    for epoch in range(8):
        assert sorted(seen[13 * epoch : 13 * (epoch + 1)]) == list(range(13))
    assert seen[:13] != seen[13:26]


def test_samples_of_a_prompt_are_a_group(make):
    trainer = make(estimator="grpo", samples_per_prompt=4)
    assert len(trainer.next_prompts()) == 2
    rollout = trainer.rollout(trainer.next_prompts())
    assert rollout.groups == [0] * 4 + [1] * 4
    assert len({tuple(r) for r in rollout.responses[:4]}) > 1  # each sample has random numbers of its own


@pytest.mark.parametrize(("rows", "world", "micro"), [(8, 1, 4), (8, 2, 3), (7, 2, 2), (3, 4, 2), (1, 2, 1)])
def test_minibatches_lose_and_repeat_no_row(rows, world, micro):
    lengths = [1 + (5 * row) % 7 for row in range(rows)]
    parts = plan_parts(list(range(rows)), lengths, micro * max(lengths), world)
    assert len({len(p) for p in parts}) == 1  # all ranks make the same number of passes
    assert sorted(row for p in parts for part in p for row in part) == list(range(rows))
    for part in (part for p in parts for part in p if part):
        assert len(part) * max(lengths[row] for row in part) <= micro * max(lengths)
    work = [sum(lengths[row] for part in p for row in part) for p in parts]
    assert max(work) - min(work) <= max(lengths)


def test_each_epoch_of_each_update_cuts_the_rollout_into_other_minibatches(make):
    trainer, epochs = make(epochs=3, minibatches=4, updates=2), []
    plain = trainer.learner.plan

    def plan(rows, lengths, room, world):
        steps.append(frozenset(rows))
        return plain(rows, lengths, room, world)

    for _ in range(2):
        rollout, steps = scored(trainer), []
        trainer.learner.plan = plan
        trainer.update(rollout)
        trainer.learner.plan = plain
        epochs += [steps[first : first + 4] for first in (0, 4, 8)]
    for minibatches in epochs:
        assert sorted(row for minibatch in minibatches for row in minibatch) == list(range(8))
    assert len({frozenset(minibatches) for minibatches in epochs}) == 6


def test_critic_warm_up_holds_the_policy(make):
    trainer = make(critic_warmup=1, updates=2)
    policy = [p.detach().clone() for p in trainer.roles.policy.parameters()]
    critic = [p.detach().clone() for p in trainer.roles.critic.parameters()]
    trainer.update(scored(trainer))
    assert all(torch.equal(a, b) for a, b in zip(policy, trainer.roles.policy.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(critic, trainer.roles.critic.parameters(), strict=True))
    trainer.update(scored(trainer))
    assert any(not torch.equal(a, b) for a, b in zip(policy, trainer.roles.policy.parameters(), strict=True))


LEARNS = dict(
    updates=40,
    batch_size=32,
    minibatches=1,
    epochs=4,
    micro_batch_size=32,
    forward_batch_size=32,
    learning_rate=5e-3,
    missing_eos="none",
    kl_coef=0.01,
)


def test_it_learns_a_reward_that_can_be_had(make):
    """Reward 1 for each token 7 in the response: the policy learns to say it."""
    history = run_updates(make(TokenReward(), **LEARNS))
    assert history[0]["reward/score"] < 1.0
    assert history[-1]["reward/score"] > 4.0  # of 6
    assert history[-1]["kl/k1"] > 1.0
    assert history[-1]["policy/entropy"] < history[0]["policy/entropy"]


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce++", "reinforce++-baseline"])
def test_the_relatives_learn_it_too(make, estimator):
    trainer = make(TokenReward(), **{**LEARNS, "updates": 25, "estimator": estimator, "samples_per_prompt": 4})
    assert trainer.roles.critic is None
    history = run_updates(trainer)
    assert history[-1]["reward/score"] > 2.5 > 1.0 > history[0]["reward/score"]
    assert not any(name.startswith("critic/") for name in history[-1])


def test_bad_configs(make, tmp_path):
    config = make().config
    with pytest.raises(UserError, match="vocabulary has 29 tokens, the policy's 23"):
        config.reference = str(save_policy(tmp_path / "other", vocab_size=29))
        load_roles(config)
    with pytest.raises(UserError, match="has 2 labels"):
        from transformers import Qwen3ForSequenceClassification

        from tests.support import tiny_config, word_tokenizer

        Qwen3ForSequenceClassification(tiny_config(num_labels=2)).save_pretrained(tmp_path / "two")
        word_tokenizer().save_pretrained(tmp_path / "two")
        config.reward = str(tmp_path / "two")
        build_source(config.sources, torch.device("cpu"), word_tokenizer())
    with pytest.raises(ValueError, match="minibatches: 3 does not divide batch_size 8"):
        PPOConfig(policy="a", reward="b", prompts="c", batch_size=8, minibatches=3).check()
    with pytest.raises(ValueError, match="samples_per_prompt: 1, but estimator grpo compares"):
        PPOConfig(policy="a", reward="b", prompts="c", estimator="grpo").check()


ROLLS_BACK = MonitorsOptions(kl=KLOptions(action="rollback"))
UNREAD = [
    ({"estimator": "reinforce++", name: value}, f"{name}: is not read by estimator reinforce.., which has no critic")
    for name, value in {
        "critic": "c", "critic_from": "policy", "critic_learning_rate": 1e-3, "critic_warmup": 2, "gae_lambda": 0.9,
        "value_lambda": 1.0, "length_alpha": 0.05, "value_clip": None, "value_coef": 0.2,
    }.items()
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *UNREAD,
        ({"group_std": False}, "group_std: is not read by estimator gae, but by grpo alone; leave it out"),
        ({"estimator": "rloo", "samples_per_prompt": 2, "gamma": 0.9}, "gamma: is not read by estimator rloo"),
        ({"length_alpha": 0.05, "gae_lambda": 0.9}, "gae_lambda: is not read by length_alpha"),
        ({"ptx_coef": 0.1}, "ptx_coef: is not read by a run without ptx_data; add --ptx_data PATH, or leave it out"),
        ({"ptx_batch_size": 8}, "ptx_batch_size: is not read"),
        ({"kl_horizon": 500}, "kl_horizon: is not read by a fixed KL weight; add --kl_target"),
        (
            {"kl_coef": 0.0, "kl_kind": "k3"},
            r"kl_kind: is not read by a run without a KL penalty \(kl_coef 0\); leave it out",
        ),
        (
            {"missing_eos": "none", "missing_eos_penalty": 2.0},
            "missing_eos_penalty: is not read by missing_eos none; leave it out",
        ),
        (
            {"importance_cap": 1.5},
            "importance_cap: is not read by a run whose policy samples for itself; add --rollouts_ahead 1 or --vllm.url URL, or",
        ),
        ({"critic_warmup": 3, "updates": 3}, "critic_warmup: 3 of 3 updates leave none in which the policy moves"),
        ({"kl_target": 1.0, "kl_horizon": 63}, "kl_horizon: 63 episodes are fewer than those of one rollout"),
        ({"kl_target": 1.0, "kl_coef": 0.0}, "kl_coef: 0 never moves"),
        ({"replay": "r", "monitors": ROLLS_BACK}, "monitors: action rollback makes no sense in a replay"),
    ],
)
def test_options_that_nothing_would_read_or_that_waste_the_run_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(policy="a", reward="b", prompts="c", **changes).check()


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_coef": 0.0, "missing_eos": "none"},
        {"kl_kind": "k3", "missing_eos_penalty": 2.0, "importance_cap": 1.5, "rollouts_ahead": 1},
        {"replay": "r", "importance_cap": 1.5},
    ],
)
def test_options_that_are_read_or_left_alone_are_fine(changes):
    PPOConfig(policy="a", reward="b", prompts="c", **changes).check()


def test_the_adaptive_weight_stays_positive_at_the_shortest_horizon():
    PPOConfig(policy="a", reward="b", prompts="c", kl_target=1.0, kl_horizon=64).check()
    controller = KLController(0.1, target=1e-3, horizon=64)
    for _ in range(50):
        controller.update(-5.0, 64)
    assert controller.coef == pytest.approx(0.1 * 0.8**50)


def test_a_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(make):
    trainer = make(missing_eos="none")
    rollout = scored(trainer)
    rollout.advantages_BT[3] = float("nan")
    with pytest.raises(UserError, match=r"update 1: \S+ is nan, so the weights are lost; .*lower learning_rate"):
        trainer.update(rollout)


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", -1.0), ("clip", 0.0), ("kl_horizon", 0), ("kl_target", 0.0), ("gamma", 1.1), ("kl_coef", -0.1)],
)
def test_ranges_of_the_config(key, value):
    with pytest.raises(UserError, match=key):
        build(PPOConfig, {"policy": "p", "reward": "r", "prompts": "x", key: value}, "recipe.yaml")


def test_texts_are_prompts_too(make):
    trainer = make()
    rollout = trainer.rollout(["the of and", "to"] * 4)
    assert rollout.prompt_ids[:2] == [[3, 4, 5], [6]]


def test_ptx_pulls_towards_its_data(make, tmp_path):
    """Without any reward, PPO with PTX is training on its rows: their loss falls, and more with a larger weight."""
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "the of", "completion": "and to in"}\n{"prompt": "a is", "completion": "that it"}\n')
    settings = dict(updates=6, ptx_data=str(data), ptx_batch_size=2, learning_rate=3e-3, kl_coef=0.0)
    falls = []
    for weight in (0.0, 1.0):
        history = run_updates(make(TokenReward(99), ptx_coef=weight, **settings))
        falls.append(history[0]["ptx/loss"] - history[-1]["ptx/loss"])
        assert ("ptx/grad_norm_ratio" in history[0]) and (history[0]["ptx/grad_norm_ratio"] > 0) == (weight > 0)
    assert falls[1] > falls[0] + 0.5


@pytest.fixture
def ptx_rows(tmp_path):
    """Five pairs, one of them longer than any episode."""
    path = tmp_path / "rows.jsonl"
    words = [("the of", "and to in"), ("a is", "that it"), ("the", "in"), ("to " * 40, "it"), ("of a is", "it was on")]
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in words))
    return str(path)


def test_ptx_rows_are_cut_by_room_and_count_the_same(make, ptx_rows):
    found = {}
    for rows in (1, 16):
        trainer = make(
            ptx_data=ptx_rows, ptx_batch_size=6, ptx_coef=1.0, micro_batch_size=rows, updates=1, forward_batch_size=1
        )
        assert (len(trainer.learner.ptx.rows), trainer.learner.ptx.left_out) == (4, 1)
        widths = []
        trainer.engine.module.register_forward_pre_hook(lambda _, args, w=widths: w.append(args[0].numel()))
        run_updates(trainer)
        found[rows] = weights(trainer), max(widths), trainer.learner.room
    assert torch.allclose(found[1][0], found[16][0], atol=1e-5)
    assert found[1][1] <= found[1][2]


def test_the_ptx_ratio_is_to_the_policys_gradient_without_it(make, ptx_rows):
    """Without a critic, the gradient norm of the same step without PTX is the policy's; the PTX loss's is taken by hand."""
    settings = dict(estimator="reinforce++", epochs=1, minibatches=1, learning_rate=1e-3)
    plain = make(**settings)
    rollout = scored(plain)
    norm = plain.update(rollout)["train/grad_norm"]
    for weight in (0.5, 2.0):
        trainer = make(ptx_data=ptx_rows, ptx_batch_size=4, ptx_coef=weight, **settings)
        policy = list(trainer.roles.policy.parameters())
        episodes = trainer.learner.ptx.episodes((0, 0), trainer.runtime.device)
        batch = make_batch(episodes, range(4), 0)
        loss = -response_logprobs(trainer.roles.policy, *vars(batch).values(), 1.0)[0].mean()
        alone = torch.stack([g.norm() for g in torch.autograd.grad(loss, policy)]).norm()
        assert trainer.update(rollout)["ptx/grad_norm_ratio"] == pytest.approx(weight * float(alone) / norm, rel=1e-4)


def test_an_update_tells_how_far_it_has_come(make):
    trainer, told = make(updates=1, batch_size=8, forward_batch_size=4, micro_batch_size=2, minibatches=2, epochs=1), []
    trainer.tell = told.append
    trainer.train()
    assert told[:2] == ["sampling: 4 of 8 episodes", "sampling: 8 of 8 episodes"]
    passes = [line for line in told if line.startswith("log-probabilities: pass ")]
    assert passes[-1].endswith(f"{len(passes)} of {len(passes)}") and told[2 : 2 + len(passes)] == passes
    steps = told[2 + len(passes) :]
    assert steps[0].startswith("training: step 1 of 2, micro-batch 1 of ") and steps[-1].startswith("training: step 2")


def test_an_update_beyond_the_schedule_is_refused(make):
    trainer = make(updates=1, epochs=1, minibatches=1)
    trainer.update(scored(trainer))
    before, rollout = weights(trainer), scored(trainer)
    with pytest.raises(
        UserError, match="updates: update 2 is one more than the config's 1, over which the learning rate"
    ):
        trainer.update(rollout)
    assert torch.equal(weights(trainer), before) and trainer.update_number == 1
