"""Evaluation during PPO: what is measured of held-out prompts, that training does not notice, and the best policy."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.ppo import best as best_module
from alignment.ppo.best import BestPolicy, is_better
from alignment.ppo.config import PPOConfig
from alignment.ppo.evaluation import HeldOut, History, Sample, load_held_out, measure, record_of, sample_rows
from alignment.ppo.options import EvaluationOptions
from alignment.ppo.stage import save_artefact
from data.completions import Completion
from evaluation.safety.lexicon import compile_lexicon
from evaluation.scoring import completion_logprobs
from evaluation.statistics import mean, win_rate
from launch.checkpoint import CheckpointStore
from launch.config import build
from launch.errors import UserError
from tests.alignment import ppo_support as support
from tests.alignment.ppo_support import TokenReward, prompt_rows, run_updates, stable, weights
from tests.support import word_tokenizer

HELD_OUT = [[3 + (i * 5 + j) % 19 for j in range(2 + i % 4)] for i in range(9)]
LEARNS = dict(updates=8, batch_size=16, micro_batch_size=16, learning_rate=5e-3, missing_eos="none", kl_coef=0.01)


class Disliked(TokenReward):
    """Gold: what the training reward pays for is what this judge takes off."""

    def score(self, episodes):
        scores = super().score(episodes)
        scores.total_B = -scores.total_B
        return scores


def held_out(gold=None, lexicon=None):
    return HeldOut(prompt_rows(HELD_OUT), gold, lexicon)


def test_training_does_not_notice_the_evaluations(make):
    plain = make(TokenReward(), **LEARNS)
    watched = make(TokenReward(), held_out=held_out(Disliked()), evaluation=EvaluationOptions(every=2), **LEARNS)
    expected, rows = run_updates(plain), run_updates(watched)
    assert [name for name in rows[0] if not name.startswith("eval/")] == ["monitor/alarms"]  # before the first update
    training = [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in rows[1:]]
    assert training == expected
    assert torch.equal(weights(plain), weights(watched))
    assert [row["step"] for row in watched.history.rows] == [0, 2, 4, 6, 8]
    assert [any(k.startswith("eval/") for k in row) for row in rows[1:]] == [False, True] * 4


def test_the_last_update_is_always_evaluated(make):
    trainer = make(held_out=held_out(), evaluation=EvaluationOptions(every=2))  # of 3 updates
    run_updates(trainer)
    assert [row["step"] for row in trainer.history.rows] == [0, 2, 3]


def test_before_the_first_update_nothing_differs_from_the_start(make):
    evaluation = make(held_out=held_out()).evaluate()
    row = evaluation.row
    assert (row["step"], row["n"], row["judge"]) == (0, 9, "proxy")
    assert abs(row["kl_k1"]) < 1e-5 and row["kl_k3"] < 1e-5 and row["sqrt_kl"] < 3e-3
    assert row["win_rate"] == row["win_rate_length_controlled"] == 0.5
    assert row["proxy_reward_gain"] == 0 and "gold_reward" not in row


def test_numbers_are_those_of_the_samples(make, folders):
    """Rewards, KL and lengths by plain transformers, from the samples alone."""
    trainer = make(TokenReward(), held_out=held_out(Disliked()), **LEARNS)
    trainer.evaluation = trainer.evaluate()
    trainer.history.add(trainer.evaluation)
    for _ in range(4):
        trainer.update(support.scored(trainer))
    evaluation = trainer.evaluate()
    row, completions = evaluation.row, [s.completion for s in evaluation.samples]
    counts = [c.completion_ids.count(7) for c in completions]
    assert row["proxy_reward"] == pytest.approx(np.mean(counts))
    expected = mean([-float(count) for count in counts])
    assert (row["gold_reward"], row["gold_reward_ci_low"], row["gold_reward_ci_high"]) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    reference = AutoModelForCausalLM.from_pretrained(folders[0]).eval()
    ids = [c.prompt_ids for c in completions], [c.completion_ids for c in completions]
    ours = completion_logprobs(trainer.engine.module.policy, *ids, 0.9)
    theirs = completion_logprobs(reference, *ids, 0.9)
    kl = [float((p - q).sum()) for p, q in zip(ours, theirs, strict=True)]
    assert row["kl_k1"] == pytest.approx(np.mean(kl), abs=1e-4)
    assert row["kl_k1"] > 0.05 and row["sqrt_kl"] == pytest.approx(math.sqrt(row["kl_k1"]))
    assert row["mean_length"] == np.mean([len(c.completion_ids) for c in completions])
    assert row["missing_eos_rate"] == np.mean([c.completion_ids[-1] != 1 for c in completions])
    start = trainer.history.start
    before = [text.split().count(word_tokenizer().decode([7])) for text in start.completions]
    won = [float(np.sign(a - b) + 1) / 2 for a, b in zip(before, counts, strict=True)]  # the judge prefers fewer
    assert row["win_rate"] == win_rate(won).value < 0.5


def test_samples_are_the_same_while_the_policy_is(make):
    """The same random numbers at every evaluation, whatever was drawn between them; and not those of the rollouts."""
    trainer = make(held_out=HeldOut(prompt_rows()), learning_rate=0.0)
    first = trainer.evaluate()
    run_updates(trainer)
    again = trainer.evaluate()
    assert [s.completion.completion_ids for s in first.samples] == [s.completion.completion_ids for s in again.samples]
    trainer.update_number = 0
    rollout = trainer.rollout(prompt_rows()[:8])
    assert [tuple(r) for r in rollout.responses] != [s.completion.completion_ids for s in first.samples[:8]]


def test_held_out_prompts_may_be_texts(make):
    tokenizer = word_tokenizer()
    texts = [tokenizer.decode(row["prompt_ids"]) for row in prompt_rows()]
    found, expected = (make(held_out=HeldOut(rows)).evaluate() for rows in (texts, prompt_rows()))
    assert found.row == expected.row and found.samples[0].completion.prompt_ids == tuple(prompt_rows()[0]["prompt_ids"])
    with pytest.raises(UserError, match=r"held_out: prompts: .* is one text; give a list"):
        make(held_out=HeldOut(texts[0]))


def test_other_held_out_prompts_may_be_given_later(make):
    trainer = make()
    trainer.held_out = HeldOut(prompt_rows()[3:5])
    assert trainer.evaluate().row["n"] == 2


def test_history_is_in_the_checkpoint(make, tmp_path, runtime):
    settings = dict(evaluation=EvaluationOptions(every=2), **LEARNS)
    whole = make(TokenReward(), held_out=held_out(Disliked()), **settings)
    store = CheckpointStore(tmp_path / "checkpoints", runtime)
    expected = []

    def sink(number, metrics):
        expected.append(stable(metrics))
        if number == 3:
            whole.save(store)

    whole.sink = sink
    whole.train()
    resumed = make(TokenReward(), held_out=held_out(Disliked()), **settings)
    resumed.load(store.latest())
    assert run_updates(resumed) == expected[4:]
    assert resumed.history == whole.history and resumed.history.start.update == 0


def test_bad_settings(make, tmp_path):
    def config(**values):
        return build(PPOConfig, {"policy": "p", "reward": "r", "prompts": "x", "evaluation": values}, "recipe.yaml")

    for values, message in (
        ({"every": 5}, "evaluation.prompts is missing"),
        ({"kl_budget": 3.0}, "evaluation.kl_budget: is not read while every is 0"),
        ({"every": 5, "prompts": "y", "gold": "r"}, "evaluation.gold: the policy is trained against r"),
        ({"every": 5, "prompts": "y", "gold": "g", "gold_rewards": {"a": {"model": "b"}}}, "gold and gold_rewards are"),
        ({"every": 5, "prompts": "y", "kl_budget": 0}, "kl_budget: 0.0 is not above 0"),
        ({"every": -1}, "evaluation.every: -1 is negative"),
        ({"evry": 1}, "did you mean 'every'"),
    ):
        with pytest.raises(UserError, match=message):
            config(**values)
    with pytest.raises(UserError, match="there are 0 held-out prompts"):
        make().evaluate()


def test_prompts_that_are_trained_on_are_left_out(tmp_path):
    tokenizer, said = word_tokenizer(), []
    training = [{"prompt": "the of", "prompt_ids": [3, 4]}, {"prompt": "and", "prompt_ids": [5]}]
    file = tmp_path / "held.jsonl"

    def load(*prompts, **options):
        file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
        settings = EvaluationOptions(every=1, prompts=str(file), **options)
        return load_held_out(settings, tokenizer, 4, training, lambda sources: TokenReward(), said.append)

    found = load("The  of", "to in", "a", "and to in a is")
    assert sorted(row["prompt"] for row in found.rows) == ["a", "to in"] and found.gold is None
    assert said[0] == "1 of 3 held-out prompts are trained on, too, and are left out"
    assert len(load("a", "to in", limit=1).rows) == 1
    assert load("a", gold="g").gold.name == "token"
    with pytest.raises(UserError, match=r"all 2 prompts of .* are trained on, too; give prompts that are held out"):
        load("and", "THE OF")


# ---------------------------------------------------------------------------------------------- pure


def sample(number, text, proxy=0.0, gold=None, k1=0.0, finished=True, prompt=None):
    ids = tuple(range(3, 3 + len(text.split()) + finished))
    completion = Completion(str(number), prompt or f"p{number}", text, finished, (3,), ids, None, "")
    return Sample(completion, proxy, gold, k1, k1)


def test_measure_by_hand():
    texts = ["a b a b a b", "I cannot help with that", "", "write to jo@mail.net now"]
    samples = [sample(i, text, proxy=float(i), gold=-float(i), finished=i < 3) for i, text in enumerate(texts)]
    start = record_of(0, [sample(i, "a b", proxy=1.0, gold=-1.0) for i in range(4)])
    peak = record_of(2, [sample(i, "a b", proxy=0.5, gold=1.0) for i in range(4)])
    found = {name: e.value for name, e in measure(samples, start, peak, compile_lexicon({"cannot"})).items() if e}
    assert found["proxy_reward"] == 1.5 and found["gold_reward"] == -1.5
    assert found["proxy_reward_gain"] == 0.5 and found["gold_reward_gain"] == -0.5
    assert found["win_rate"] == (1 + 0.5) / 4  # the judge: 0 > -1, -1 = -1, -2 and -3 < -1
    assert found["proxy_reward_since_peak"] == 1.0 and found["gold_reward_since_peak"] == -2.5
    assert found["missing_eos_rate"] == found["personal_data_rate"] == found["refusal_rate"] == 0.25
    assert found["lexicon_rate"] == found["degenerate_rate"] == 0.25  # the empty one says nothing
    assert found["repetition_4"] == pytest.approx((1 - 2 / 3) / 4)
    assert found["distinct_1"] == pytest.approx(11 / 15)
    assert found["mean_length"] == np.mean([7, 6, 1, 4])


def test_the_same_completion_is_a_tie_whatever_the_last_bits_say():
    start = record_of(0, [sample(i, "a b", proxy=1.0) for i in range(3)])
    own = [sample(0, "a b", proxy=1.0 + 1e-7), sample(1, "a b", proxy=0.5, finished=False), sample(2, "b", proxy=2.0)]
    assert measure(own, start, None, None)["win_rate"].value == (0.5 + 0 + 1) / 3


def test_samples_of_one_prompt_are_one_unit():
    rows = [sample(i, "a", proxy=float(i // 2), prompt=f"p{i // 2}") for i in range(8)]
    alone = measure(rows[::2], None, None, None)["proxy_reward"]
    doubled = measure(rows, None, None, None)["proxy_reward"]
    assert doubled.n == alone.n == 4
    assert (doubled.low, doubled.high) == pytest.approx((alone.low, alone.high))


def test_the_peak_is_the_highest_gold_reward():
    history = History()
    for update, gold in enumerate((0.0, 2.0, 1.0, 3.0)):
        history.add(history.evaluate(update, [sample(i, "a", gold=gold) for i in range(3)]))
    assert history.peak.update == 3 and history.start.update == 0
    assert "gold_reward_since_peak" not in history.rows[0]
    assert [row["gold_reward_since_peak"] for row in history.rows[1:]] == [2.0, -1.0, 1.0]
    again = History()
    again.load_state_dict(json.loads(json.dumps(history.state_dict())))
    assert again == history


def test_rows_of_samples_have_the_start_beside_them():
    history = History()
    history.add(history.evaluate(0, [sample(0, "a b")]))
    later = history.evaluate(4, [sample(0, "c", proxy=2.0, finished=False)])
    (row,) = sample_rows(later, history.start)
    assert (row["step"], row["completion"], row["start_completion"]) == (4, "c", "a b")
    assert (row["proxy"], row["finished"], row["tokens"]) == (2.0, False, 1) and "gold" not in row


# ---------------------------------------------------------------------------------------------- the best policy


def row_of(step, reward, kl, judge="gold", half=0.0):
    return {"step": step, "n": 9, "judge": judge, f"{judge}_reward": reward, "kl_k1": kl, "kl_k1_ci_high": kl + half}


def test_selection_rule():
    assert is_better(row_of(0, -5.0, 0.0), None, 1.0)
    assert not is_better(row_of(0, -5.0, 0.9, half=0.2), None, 1.0)  # the interval reaches over the budget
    assert is_better(row_of(0, -5.0, 99.0), None, None)
    assert not is_better(row_of(1, 1.0, 0.0), row_of(0, 1.0, 0.0), 1.0)  # the earlier of equals
    assert is_better(row_of(1, 1.1, 0.5), row_of(0, 1.0, 0.0), 1.0)
    assert is_better(row_of(1, 1.1, 0.5, "proxy"), row_of(0, 1.0, 0.0, "proxy"), 1.0)


def test_best_is_a_plain_folder_of_the_best_policy(make, tmp_path, runtime):
    trainer = make(TokenReward(), held_out=held_out(), evaluation=EvaluationOptions(every=2), **LEARNS)
    best = BestPolicy(tmp_path / "best", None, runtime, lambda folder: save_artefact(trainer, folder))
    chosen = {}

    def sink(number, metrics):
        if trainer.evaluation.update == number and best.offer(trainer.evaluation, trainer.history.start):
            chosen[number] = [p.detach().clone() for p in trainer.engine.module.parameters()]

    trainer.sink = sink
    trainer.train()
    rewards = {row["step"]: row["proxy_reward"] for row in trainer.history.rows}
    first = min(step for step, reward in rewards.items() if reward == max(rewards.values()))
    assert max(chosen) == first > 0 and best.row["step"] == first
    loaded = [
        *AutoModelForCausalLM.from_pretrained(tmp_path / "best").parameters(),
        *AutoModelForSequenceClassification.from_pretrained(tmp_path / "best" / "critic").parameters(),
    ]
    assert all(torch.equal(a, b) for a, b in zip(loaded, chosen[first], strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    text = (tmp_path / "best" / "README.md").read_text()
    assert f"The policy after update {first}: the highest mean proxy reward on 9 held-out prompts." in text
    assert best.summary()["best/step"] == first and "best/proxy_reward_ci_low" in best.summary()
    rows = [json.loads(line) for line in (tmp_path / "best" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and {row["step"] for row in rows} == {first}


class Killed(BaseException):
    pass


def test_best_is_never_half_written(tmp_path, runtime, monkeypatch):
    """Killed before each single rename and removal: a whole folder, of this evaluation or of the one before, is found."""
    history = History()
    evaluations = [history.evaluate(u, [sample(0, "a", proxy=float(u)), sample(1, "b")]) for u in (1, 2)]

    def make_best():
        return BestPolicy(root / "best", None, runtime, lambda folder: (folder / "model").write_text("weights"))

    for fatal in range(12):
        root = tmp_path / str(fatal)
        root.mkdir()
        assert make_best().offer(evaluations[0], None)
        calls = 0

        def dying(action):
            def act(*args, **named):
                nonlocal calls
                calls += 1
                if calls == fatal + 1:
                    raise Killed
                return action(*args, **named)

            return act

        best = make_best()
        with monkeypatch.context() as patch:
            for module, names in ((best_module.os, ["rename"]), (best_module.shutil, ["rmtree"])):
                for name in names:
                    patch.setattr(module, name, dying(getattr(module, name)))
            for name in ("write_atomic", "write_json", "fsync_tree", "fsync_path", "append_jsonl"):
                patch.setattr(best_module, name, dying(getattr(best_module, name)))
            died = False
            try:
                best.offer(evaluations[1], None)
            except Killed:
                died = True
        found = make_best()
        assert found.row["step"] in (1, 2) and (root / "best" / "model").read_text() == "weights"
        assert json.loads((root / "best" / "evaluation.json").read_text()) == found.row
        assert len((root / "best" / "samples.jsonl").read_text().splitlines()) == 2
        assert [p.name for p in root.iterdir()] == ["best"]
        found.offer(evaluations[1], None)
        assert found.row["step"] == 2
        if not died:
            break
    assert not died and fatal > 7  # every step of it was tried


def test_a_killed_run_ends_with_the_same_best(tmp_path, runtime):
    """best/ is ahead of the checkpoint after a kill: the evaluations that are made again change nothing."""
    rewards = [0.0, 2.0, 1.0, 3.0, 2.5]
    history = History()
    evaluations = [history.evaluate(u, [sample(0, "a", proxy=r)]) for u, r in enumerate(rewards)]
    written = []

    def open_best():
        return BestPolicy(tmp_path / "best", None, runtime, lambda folder: written.append(folder))

    for order in ([0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3, 4]):
        best = open_best()
        for update in order:
            best.offer(evaluations[update], None)
    assert open_best().row["step"] == 3
    assert len(written) == 3  # 0, 1 and 3, once each
