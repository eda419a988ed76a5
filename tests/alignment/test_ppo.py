"""The PPO trainer: invariants of its phases, on tiny random models."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.ppo import objectives as ppo
from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_roles, response_logprobs, response_values
from alignment.ppo.rollout import make_rollout, minibatch_parts
from alignment.ppo.trainer import PPOTrainer
from launch.config import build
from launch.errors import UserError
from launch.runtime import start_runtime
from tests.support import save_policy, save_reward

PROMPTS = [[3 + (i * 7 + j) % 20 for j in range(1 + i % 5)] for i in range(13)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("ppo")
    return save_policy(root / "policy"), save_reward(root / "reward")


@pytest.fixture(scope="module")
def runtime():
    return start_runtime("fp32")


@pytest.fixture
def make(folders, runtime):
    def build(**changes):
        policy, reward = folders
        settings = dict(
            policy=str(policy),
            reward=str(reward),
            prompts="-",
            output_dir="-",
            batch_size=8,
            minibatches=2,
            epochs=2,
            micro_batch_size=2,
            forward_batch_size=4,
            max_new_tokens=6,
            updates=3,
            learning_rate=1e-3,
            temperature=0.9,
        )
        config = PPOConfig(**{**settings, **changes})
        return PPOTrainer(
            config, load_roles(config.policy, None, None, config.reward, runtime.device), PROMPTS, runtime
        )

    return build


def run_updates(trainer):
    history = []
    trainer.train(
        lambda number, metrics: history.append({k: v for k, v in metrics.items() if not k.startswith("perf/")})
    )
    return history


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.engine.module.parameters()])


def scored(trainer):
    return trainer.advantages(trainer.score(trainer.rollout(trainer.next_prompts())))


def test_first_pass_has_ratio_one_and_no_divergence(make):
    trainer = make()
    rollout = scored(trainer)
    rows = rollout.rows(slice(0, 4))
    logprobs, _, values = trainer.engine(rows.tokens_BS, rows.mask_BS, rows.length, 0.9)
    mask = rows.response_mask_BT
    assert torch.allclose(logprobs * mask, rows.logprobs_BT * mask, atol=1e-6)
    assert torch.allclose(values * mask, rows.values_BT * mask, atol=1e-5)
    metrics = make(epochs=1, minibatches=1).update(rollout)
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-10)
    assert metrics["policy/clip_fraction"] == 0


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
            assert b[name] == pytest.approx(a[name], abs=1e-5, rel=1e-4), name
    assert torch.allclose(weights(reference), weights(changed), atol=1e-5)


def test_results_do_not_depend_on_padding(folders):
    policy, reward = folders
    actor = AutoModelForCausalLM.from_pretrained(policy).eval()
    critic = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    tokens, mask = torch.tensor([[5, 6, 7, 8, 9, 1]]), torch.ones(1, 6, dtype=torch.long)
    padded = torch.tensor([[0, 0, 0, 5, 6, 7, 8, 9, 1, 0]])
    padded_mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 0]])
    with torch.no_grad():
        short, _ = response_logprobs(actor, tokens, mask, 3, 0.7)
        long, _ = response_logprobs(actor, padded, padded_mask, 4, 0.7)
        assert torch.allclose(short, long[:, :3], atol=1e-5)
        assert torch.allclose(
            response_values(critic, tokens, mask, 3), response_values(critic, padded, padded_mask, 4)[:, :3], atol=1e-5
        )


def test_logprobs_entropy_and_values_against_the_definition(folders):
    policy, reward = folders
    actor = AutoModelForCausalLM.from_pretrained(policy).eval()
    critic = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    tokens = torch.tensor([[5, 6, 7, 8, 9, 1]])
    with torch.no_grad():
        logprobs, entropy = response_logprobs(actor, tokens, torch.ones_like(tokens), 2, 0.5)
        everything = torch.log_softmax(actor(tokens).logits[0] / 0.5, -1)
        assert torch.allclose(logprobs[0], torch.stack([everything[3, 9], everything[4, 1]]), atol=1e-5)
        assert torch.allclose(entropy[0], -(everything.exp() * everything).sum(-1)[3:5], atol=1e-5)
        value = response_values(critic, tokens, torch.ones_like(tokens), 2)[0, 1]
        assert value == pytest.approx(float(critic(tokens[:, :5]).logits), abs=1e-5)  # the head at the token before


def test_score_is_the_reward_model_on_the_real_tokens(make, folders):
    trainer = make()
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    judge = AutoModelForSequenceClassification.from_pretrained(folders[1]).eval()
    for row in range(len(rollout)):
        real = rollout.tokens_BS[row][rollout.mask_BS[row].bool()]
        with torch.no_grad():
            assert float(rollout.scores_B[row]) == pytest.approx(float(judge(real[None]).logits), abs=1e-5)


def test_response_mask_holds_eos_and_nothing_after_it(runtime):
    rollout = make_rollout([[3, 4], [5]], [[6, 1], [7, 8, 9]], pad_id=0, eos_id=1, runtime=runtime)
    assert rollout.tokens_BS.tolist() == [[3, 4, 6, 1, 0], [0, 5, 7, 8, 9]]
    assert rollout.mask_BS.tolist() == [[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert rollout.response_mask_BT.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert rollout.finished_B.tolist() == [1, 0]


def test_advantages_are_global_and_whitened(make):
    rollout = scored(make())
    kept = rollout.advantages_BT[rollout.response_mask_BT.bool()]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-6)
    assert float(kept.std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    kl = ppo.kl_estimate(rollout.logprobs_BT, rollout.ref_logprobs_BT)
    scores = ppo.apply_missing_eos(rollout.scores_B, rollout.finished_B, "replace", 1.0)
    total = (rollout.rewards_BT * rollout.response_mask_BT).sum(1)
    assert torch.allclose(total, scores - 0.05 * (kl * rollout.response_mask_BT).sum(1), atol=1e-5)


def test_prompts_are_shuffled_without_loss(make):
    trainer = make(batch_size=8)
    seen = []
    for trainer.update_number in range(13):  # 104 episodes: 8 whole passes over 13 prompts
        seen += trainer.next_prompts()
    for epoch in range(8):
        assert sorted(seen[13 * epoch : 13 * (epoch + 1)]) == list(range(13))
    assert seen[:13] != seen[13:26]


class FakeRank:
    def __init__(self, rank, world):
        self.rank, self.world = rank, world


@pytest.mark.parametrize(("rows", "world", "micro"), [(8, 1, 4), (8, 2, 3), (7, 2, 2), (3, 4, 2), (1, 2, 1)])
def test_minibatches_lose_and_repeat_no_row(rows, world, micro):
    parts = [minibatch_parts(list(range(rows)), FakeRank(rank, world), micro) for rank in range(world)]
    assert len({len(p) for p in parts}) == 1  # all ranks make the same number of passes
    assert sorted(row for p in parts for part in p for row in part) == list(range(rows))
    assert max(len(part) for p in parts for part in p) <= micro


def test_critic_warm_up_holds_the_policy(make):
    trainer = make(critic_warmup=1, updates=2)
    policy = [p.detach().clone() for p in trainer.roles.policy.parameters()]
    critic = [p.detach().clone() for p in trainer.roles.critic.parameters()]
    trainer.update(scored(trainer))
    assert all(torch.equal(a, b) for a, b in zip(policy, trainer.roles.policy.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(critic, trainer.roles.critic.parameters(), strict=True))
    trainer.update_number = 1
    trainer.update(scored(trainer))
    assert any(not torch.equal(a, b) for a, b in zip(policy, trainer.roles.policy.parameters(), strict=True))


def test_it_learns_a_reward_that_can_be_had(make):
    """Reward 1 for each token 7 in the response: the policy learns to say it."""
    trainer = make(
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
    trainer._rewards = lambda rollout: ((rollout.tokens_BS[:, -rollout.length :] == 7) * rollout.response_mask_BT).sum(
        1
    )
    history = run_updates(trainer)
    assert history[0]["reward/score"] < 1.0
    assert history[-1]["reward/score"] > 4.0  # of 6
    assert history[-1]["kl/k1"] > 1.0
    assert history[-1]["policy/entropy"] < history[0]["policy/entropy"]


def test_a_text_reward_with_another_tokenizer_sees_the_text(make):
    trainer = make()
    seen = {}

    class Judge:
        def same_tokenizer(self, other):
            return False

        def score(self, prompts, completions, ended):
            seen.update(prompts=prompts, completions=completions, ended=ended)
            return [float(len(c)) for c in completions]

    trainer.roles.reward = Judge()
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    assert rollout.scores_B.tolist() == [float(len(c)) for c in seen["completions"]]
    row = rollout.tokens_BS[0][: -rollout.length][rollout.mask_BS[0][: -rollout.length].bool()]
    assert seen["ended"] == rollout.finished_B.bool().tolist()
    assert seen["prompts"][0] == trainer.roles.tokenizer.decode(row)
    assert not any("<eos>" in c or "<pad>" in c for c in seen["completions"])


def test_bad_configs(make, tmp_path):
    with pytest.raises(UserError, match="vocabulary has 29 tokens, the policy's 23"):
        save_policy(tmp_path / "other", vocab_size=29)
        load_roles(str(make().config.policy), None, str(tmp_path / "other"), make().config.reward, torch.device("cpu"))
    with pytest.raises(UserError, match="has 2 labels"):
        from transformers import Qwen3ForSequenceClassification

        from tests.support import tiny_config, word_tokenizer

        Qwen3ForSequenceClassification(tiny_config(num_labels=2)).save_pretrained(tmp_path / "two")
        word_tokenizer().save_pretrained(tmp_path / "two")
        load_roles(make().config.policy, None, None, str(tmp_path / "two"), torch.device("cpu"))
    with pytest.raises(ValueError, match="minibatches: 3 does not divide batch_size 8"):
        PPOConfig(policy="a", reward="b", prompts="c", batch_size=8, minibatches=3).check()


def test_a_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(make):
    trainer = make(missing_eos="none")
    rollout = trainer.score(trainer.rollout(trainer.next_prompts()))
    rollout.scores_B[3] = float("nan")
    with pytest.raises(UserError, match=r"update 1: \S+ is nan, so the weights are lost; .*lower learning_rate"):
        trainer.update(trainer.advantages(rollout))


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", -1.0), ("clip", 0.0), ("kl_horizon", 0), ("kl_target", 0.0), ("gamma", 1.1), ("kl_coef", -0.1)],
)
def test_ranges_of_the_config(key, value):
    with pytest.raises(UserError, match=key):
        build(PPOConfig, {"policy": "p", "reward": "r", "prompts": "x", key: value}, "recipe.yaml")


def test_a_judge_with_another_tokenizer_reads_a_cut_response_without_an_end(make, monkeypatch):
    trainer = make()
    rollout = trainer.rollout(trainer.next_prompts())
    rollout.finished_B[:] = torch.tensor([1, 0] * 4)
    monkeypatch.setattr(trainer.roles.reward, "same_tokenizer", lambda other: False)
    judge, seen = trainer.roles.reward, {}
    encode = judge.encode
    monkeypatch.setattr(judge, "encode", lambda p, c, ended=None: seen.setdefault("ids", encode(p, c, ended)))
    trainer._rewards(rollout)
    eos = trainer.roles.tokenizer.eos_token_id
    assert [ids[-1] == eos for ids in seen["ids"]] == [True, False] * 4
