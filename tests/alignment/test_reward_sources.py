"""Reward sources against values computed by hand, and every way in which one can give nonsense."""

import math
import sys
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, Qwen3ForSequenceClassification

from alignment.reward.model import RewardModel
from alignment.reward.sources import function as function_module
from alignment.reward.sources.build import build_source
from alignment.reward.sources.combined import CombinedSource, combine
from alignment.reward.sources.config import SourceConfig, named_rewards
from alignment.reward.sources.ensemble import EnsembleSource, aggregate_members, disagreement
from alignment.reward.sources.function import FunctionSource
from alignment.reward.sources.model import ModelSource
from alignment.reward.sources.protocol import Episodes, Scores, check_rewards, single
from alignment.reward.sources.rules import RuleSource, format_rule, length_penalty, length_rule, repetition_rule
from data import train_tokenizer
from launch.config import build
from launch.errors import UserError
from launch.stopping import Stopped
from tests.alignment.reward_support import COMPLETIONS, FINISHED, PROMPTS, episodes
from tests.support import save_reward, tiny_config, word_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("rewards")
    return [str(save_reward(root / f"reward{seed}", seed)) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def other_judge(tmp_path_factory):
    """A reward model whose tokenizer is not the policy's: bytes, with a chat template."""
    folder = tmp_path_factory.mktemp("other")
    tokenizer = train_tokenizer(["the of and to in a is that"] * 3, 300)
    torch.manual_seed(4)
    Qwen3ForSequenceClassification(
        tiny_config(len(tokenizer), num_labels=1, initializer_range=0.3, max_position_embeddings=128)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return RewardModel.from_pretrained(folder)


# ---------------------------------------------------------------------------------------------- protocol


def test_episodes_of_sampled_ids():
    found = episodes(rows=[{"reference": "x", "level": 1}, {"reference": "y"}, {}])
    assert list(found.completions) == COMPLETIONS and list(found.finished) == FINISHED and len(found) == 3
    assert found.columns() == {"reference": ["x", "y", None], "level": [1, None, None]}
    with pytest.raises(ValueError, match="different lengths"):
        Episodes(["a"], ["b"], [[1]], [[2]], [True], [])


def test_rewards_of_any_numeric_kind_are_taken():
    for values in ([1, True, 0.5], (1.0, 1.0, 0.5), torch.tensor([1, 1, 0.5]), torch.tensor([1, 1, 0.5]).numpy()):
        found = check_rewards(values, 3, "reward r")
        assert found.dtype == torch.float32 and found.tolist() == [1, 1, 0.5]
    assert check_rewards([torch.tensor(1.5)], 1, "reward r").tolist() == [1.5]
    assert check_rewards([], 0, "reward r").shape == (0,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, r"^reward r: returned nothing for 3 episodes; return a list"),
        (1.0, r"^reward r: returned 1\.0 \(float\) for 3 episodes, which is no list"),
        ("abc", r"returned 'abc' \(str\)"),
        ({"a": 1}, r"\(dict\) for 3 episodes"),
        ([1, 2], r"^reward r: returned 2 values for 3 episodes; return one number for each"),
        ([1, 2, 3, 4], r"^reward r: returned 4 values for 3 episodes"),
        ([1, math.nan, math.inf], r"^reward r: row 2 of the episodes has nan \(float\) .* \(2 of 3 rows are bad\)"),
        ([1, 2, -math.inf], r"row 3 of the episodes has -inf .* \(1 of 3 rows are bad\)"),
        ([None, 1, 2], r"row 1 of the episodes has None \(NoneType\)"),
        ([1, "2", 2], r"row 2 of the episodes has '2' \(str\)"),
        ([1, [2], 2], r"row 2 of the episodes has \[2\] \(list\)"),
        ([1, 1e300, 2], r"row 2 of the episodes has 1e\+300"),  # no float32
        ([1, 2, 10**400], r"row 3 of the episodes has 1000"),
    ],
)
def test_nonsense_is_named_with_its_source_count_and_first_row(values, message):
    with pytest.raises(UserError, match=message):
        check_rewards(values, 3, "reward r")


# ---------------------------------------------------------------------------------------------- reward models


def test_a_model_with_the_policys_tokenizer_reads_the_sampled_ids(folders):
    source = ModelSource("helpful", RewardModel.from_pretrained(folders[0]), word_tokenizer())
    plain = AutoModelForSequenceClassification.from_pretrained(
        folders[0]
    ).double()  # in float32 it is off by 7e-7 itself
    data = episodes()
    expected = [
        float(plain(torch.tensor([[*p, *c]])).logits.detach())
        for p, c in zip(data.prompt_ids, data.completion_ids, strict=True)
    ]
    scores = source.score(data)
    assert scores.total_B.tolist() == pytest.approx(expected, abs=2e-6)
    assert list(scores.components) == ["helpful"] and scores.token_rewards is None
    assert torch.equal(scores.last_token_B, scores.total_B)


def test_ids_that_no_text_gives_are_not_encoded_anew(folders):
    """The policy may sample what the tokenizer would not write: here an <unk>, and an EOS in the middle."""
    data = Episodes(["the"], ["?"], [[3]], [[4, 2, 1, 5]], [False], [{}])
    found = ModelSource("r", RewardModel.from_pretrained(folders[0]), word_tokenizer()).score(data).total_B
    plain = AutoModelForSequenceClassification.from_pretrained(folders[0]).double()
    assert float(found) == pytest.approx(float(plain(torch.tensor([[3, 4, 2, 1, 5]])).logits.detach()), abs=2e-6)


def test_ids_beyond_the_judges_embeddings_are_read_as_the_text_that_they_are(folders):
    """A policy whose embeddings are padded to 40 rows; the tokenizer and the judge know 23 tokens."""
    source = ModelSource("r", RewardModel.from_pretrained(folders[0]), word_tokenizer())
    rows = [{"prompt": "the", "prompt_ids": [3]}] * 3
    data = Episodes.decode(word_tokenizer(), rows, [[4, 39, 5], [4, 39, 5, 1], [4, 2, 5]])
    assert source.encode(data) == [[3, 4, 5], [3, 4, 5, 1], [3, 4, 2, 5]]
    assert source.score(data).total_B.isfinite().all()


def test_b12_a_model_with_another_tokenizer_reads_text_and_knows_what_was_cut_off(other_judge):
    source = ModelSource("helpful", other_judge, word_tokenizer())
    data = episodes()
    assert source.score(data).total_B.tolist() == pytest.approx(
        other_judge.score(PROMPTS, COMPLETIONS, ended=FINISHED), abs=1e-6
    )
    eos = other_judge.tokenizer.eos_token_id
    assert [ids[-1] == eos for ids in source.encode(data)] == FINISHED
    all_ended = other_judge.score(PROMPTS, COMPLETIONS)
    assert abs(all_ended[1] - source.score(data).total_B[1]) > 1e-3  # the EOS makes a difference


def test_messages_go_through_the_judges_own_template(other_judge):
    prompt = [{"role": "user", "content": "the"}]
    data = episodes(prompts=[prompt, "of"], completions=["it", "for"], finished=[True, True])
    source = ModelSource("r", other_judge, word_tokenizer())
    assert other_judge.tokenizer.decode(source.encode(data)[0]) == "<|user|>the<|assistant|>it<|endoftext|>"
    twin = RewardModel(other_judge.model, word_tokenizer())
    twin.tokenizer.chat_template = (
        "to {{ messages[0].content }}{% if messages|length > 1 %} {{ messages[1].content }}{% endif %}"
    )
    same_ids = ModelSource("r", twin, word_tokenizer())  # the policy's vocabulary, but another template
    assert same_ids.encode(data) == twin.encode([prompt, "of"], ["it", "for"])
    assert same_ids.encode(data)[0] == word_tokenizer()("to the it <eos>")["input_ids"]


def test_a_row_that_does_not_fit_is_named_with_its_source(folders):
    data = episodes(completions=["it", "for", "the " * 70])
    with pytest.raises(UserError, match=r"^reward helpful: row 3 has 74 tokens, more than the model's context of 64"):
        ModelSource("helpful", RewardModel.from_pretrained(folders[0]), word_tokenizer()).score(data)


def test_beat_is_called_between_batches(folders):
    beats = []
    judge = RewardModel.from_pretrained(folders[0])
    ModelSource("r", judge, word_tokenizer(), batch_tokens=7, beat=lambda: beats.append(1)).score(episodes())
    assert len(beats) == 3  # one row in each batch


# ---------------------------------------------------------------------------------------------- ensembles

MEMBERS = torch.tensor([[1.0, 4.0], [3.0, 0.0], [2.0, 5.0]])  # three members, two episodes


def test_aggregates_by_hand():
    assert disagreement(MEMBERS).tolist() == pytest.approx([math.sqrt(2 / 3), math.sqrt(14 / 3)])
    assert aggregate_members(MEMBERS, "mean").tolist() == [2.0, 3.0]
    assert aggregate_members(MEMBERS, "min").tolist() == [1.0, 0.0]
    found = aggregate_members(MEMBERS, "mean-std", 0.5)
    assert found.tolist() == pytest.approx([2 - 0.5 * math.sqrt(2 / 3), 3 - 0.5 * math.sqrt(14 / 3)])


@pytest.mark.parametrize("aggregate", ["mean", "min", "mean-std"])
def test_an_ensemble_of_models_logs_its_members_and_their_disagreement(folders, aggregate):
    tokenizer, data = word_tokenizer(), episodes()
    members = [ModelSource("safe", RewardModel.from_pretrained(folder), tokenizer) for folder in folders]
    rewards_MB = torch.stack([member.score(data).total_B for member in members])
    scores = EnsembleSource("safe", members, aggregate, 2.0).score(data)
    mean, std = rewards_MB.mean(0), rewards_MB.std(0, unbiased=False)
    expected = {"mean": mean, "min": rewards_MB.min(0).values, "mean-std": mean - 2 * std}[aggregate]
    assert scores.total_B.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert std.min() > 0.01
    assert scores.extras["safe/disagreement"].tolist() == pytest.approx(std.tolist(), abs=1e-6)
    for i in range(3):
        assert torch.equal(scores.extras[f"safe/member_{i + 1}"], rewards_MB[i])
    assert set(scores.columns()) == {"safe", "safe/disagreement", "safe/member_1", "safe/member_2", "safe/member_3"}


# ---------------------------------------------------------------------------------------------- functions


def source_of(function, tmp_path):
    return FunctionSource("mine", function, "reward.py:f", tmp_path / "reward.py")


def test_a_function_that_works_is_alive_until_its_time_is_over(tmp_path, monkeypatch):
    """Else a watchdog would end each attempt of a run whose function takes longer than it."""
    monkeypatch.setattr(function_module, "BEAT_S", 0.01)
    told, beats = [], []

    def slow(completions):
        for end in (lambda: len(beats) >= 3, lambda: told):
            while not end():
                time.sleep(0.01)
        return [0.0] * len(completions)

    def beat():
        assert not told  # after that the function counts as stuck
        beats.append(threading.current_thread())

    source = FunctionSource("slow", slow, "r.py:slow", tmp_path / "r.py", timeout_s=0.5, beat=beat, say=told.append)
    source.score(episodes())
    assert told == [
        "reward slow (r.py:slow): has not returned for 0.5 s; mend the function, or give it a larger timeout_s if it needs longer"
    ]
    assert not any(thread.is_alive() for thread in set(beats))


def test_a_stop_while_a_function_works_leaves_its_rewards_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(function_module, "BEAT_S", 0.01)
    stopped = threading.Event()

    def beat():
        stopped.set()
        raise Stopped

    def waits(completions):
        assert stopped.wait(10)
        return [1.0] * len(completions)

    source = FunctionSource("f", waits, "r.py:waits", tmp_path / "r.py", beat=beat)
    assert source.score(episodes()).total_B.tolist() == [1.0] * len(episodes())


def test_timeouts_are_of_functions_and_services():
    function = {"function": "r.py:f", "timeout_s": 7200}
    assert config_of(**function).options() == {"timeout_s": 7200}
    with pytest.raises(
        UserError, match=r"timeout_s: belongs to a reward with `(function|url)`, not to one with `model`"
    ):
        config_of(model="m", timeout_s=1.0)


def test_a_function_that_exits_is_a_fault_of_the_function(tmp_path):
    """`sys.exit(0)` would end the run as if it were done."""
    with pytest.raises(UserError, match=r"reward mine \(reward.py:f\): raised SystemExit: 0; mend the function"):
        source_of(lambda completions: sys.exit(0), tmp_path).score(episodes())


def test_a_function_gets_the_columns_as_keywords(tmp_path):
    seen = {}

    def f(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [len(text.split()) for text in completions]

    data = episodes(rows=[{"reference": "x"}, {"reference": "y"}, {"reference": "z"}])
    assert source_of(f, tmp_path).score(data).total_B.tolist() == [2, 4, 2]
    assert seen["prompts"] == PROMPTS and seen["completions"] == COMPLETIONS
    assert seen["reference"] == ["x", "y", "z"] and seen["finished"] == FINISHED
    assert seen["completion_ids"] == [list(ids) for ids in data.completion_ids] and len(seen["prompt_ids"]) == 3


def test_a_function_gets_the_columns_that_it_names(tmp_path):
    def f(completions, reference, scale=2.0):
        return [scale * (text == answer) for text, answer in zip(completions, reference, strict=True)]

    data = episodes(rows=[{"reference": "it for"}, {"reference": "y"}, {"reference": "as be"}])
    assert source_of(f, tmp_path).score(data).total_B.tolist() == [2, 0, 2]
    with pytest.raises(UserError, match=r"reward mine \(reward\.py:f\): wants 'reference', which the rows lack"):
        source_of(f, tmp_path).score(episodes())


def test_a_function_with_columns_must_get_what_it_names_too(tmp_path):
    def f(completions, answer, *, level, scale=1.0, **columns):
        return [scale * level * (text == right) for text, right, level in zip(completions, answer, level, strict=True)]

    rows = [{"answer": text, "level": 2} for text in COMPLETIONS]
    assert source_of(f, tmp_path).score(episodes(rows=rows)).total_B.tolist() == [2, 2, 2]
    with pytest.raises(UserError, match=r"wants 'level', which the rows lack.*add the column to the prompts"):
        source_of(f, tmp_path).score(episodes(rows=[{"answer": text} for text in COMPLETIONS]))
    with pytest.raises(UserError, match=r"wants 'answer', which the rows lack; did you mean 'answers'"):
        source_of(f, tmp_path).score(episodes(rows=[{"answers": "x", "level": 1}] * 3))
    everything = source_of(lambda *words, **columns: [1.0] * len(columns["completions"]), tmp_path)
    assert everything.score(episodes()).total_B.tolist() == [1, 1, 1]


def test_token_rewards(tmp_path):
    def f(completion_ids, **_):
        return [[0.5] * (len(ids) - 1) + [2] for ids in completion_ids]

    data = episodes()
    scores = source_of(f, tmp_path).score(data)
    assert [r.tolist() for r in scores.token_rewards] == [[0.5, 0.5, 2], [0.5, 0.5, 0.5, 2], [0.5, 0.5, 2]]
    assert scores.total_B.tolist() == [3, 3.5, 3] and scores.components["mine"].tolist() == [3, 3.5, 3]
    assert scores.last_token_B.tolist() == [0, 0, 0]  # all of it belongs to its tokens
    as_tensors = source_of(lambda completion_ids: [torch.ones(len(i)) for i in completion_ids], tmp_path).score(data)
    assert as_tensors.total_B.tolist() == [3, 4, 3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1, 2, 3], [1, 2], [1, 2, 3]], r"reward\.py:f\): row 2: returned 2 values for 4 tokens"),
        ([[1, 2, 3], [1, 2, math.nan, 4], [1, 2, 3]], r"row 2: row 3 of the tokens has nan"),
        ([[1, 2, 3], 1.0, [1, 2, 3]], r"row 2: a single number between lists; give a number for each of its 4 tokens"),
        (None, r"^reward mine \(reward\.py:f\): returned nothing for 3 episodes"),
        ([1.0], r"returned 1 values for 3 episodes"),
        ([1.0, math.nan, 2.0], r"row 2 of the episodes has nan \(float\) for a reward \(1 of 3"),
    ],
)
def test_a_function_that_returns_nonsense(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        source_of(lambda **columns: values, tmp_path).score(episodes())


def test_a_function_that_raises_is_named_with_its_line(tmp_path):
    (tmp_path / "reward.py").write_text("def f(completions):\n    return [c['text'] for c in completions]\n")
    config = {"mine": SourceConfig(function=f"{tmp_path}/reward.py:f")}
    with pytest.raises(UserError, match=r"reward mine \(.*reward\.py:f\): raised TypeError: .*, line 2 of reward\.py"):
        build_source(config, "cpu", word_tokenizer()).score(episodes())


# ---------------------------------------------------------------------------------------------- rules


def test_length_penalty_by_hand():
    assert [length_penalty(n, 24, 32) for n in (0, 24, 25, 28, 32, 33, 1000)] == [0, 0, -0.125, -0.5, -1, -1, -1]


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 500))
def test_length_penalty_is_flat_then_linear_then_flat(length, soft, width):
    value = length_penalty(length, soft, soft + width)
    assert -1 <= value <= 0
    assert (value == 0) == (length <= soft) and (value == -1) == (length >= soft + width)
    if soft <= length < soft + width:  # each token costs the same
        assert value - length_penalty(length + 1, soft, soft + width) == pytest.approx(1 / width)


def test_rules_by_hand():
    data = episodes(completions=["the of the of", "it it it it it", "a"], finished=[True, False, True])
    assert RuleSource("r", length_rule(4, 6)).score(data).total_B.tolist() == [-0.5, -0.5, 0]  # 5, 5 and 2 tokens
    # 2-grams: (the of) (of the) (the of): 1 of 3 repeats; four times (it it): 3 of 4; none
    assert RuleSource("r", repetition_rule(2)).score(data).total_B.tolist() == pytest.approx([-1 / 3, -3 / 4, 0])
    assert RuleSource("r", format_rule(r"\A(the|a)\b")).score(data).total_B.tolist() == [1, 0, 1]


# ---------------------------------------------------------------------------------------------- combination

numbers = st.integers(-100, 100).map(float)  # sums of their products are exact in float32, in any order


@settings(max_examples=50)
@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_the_combination_is_linear_in_the_weights(data, sources, n):
    rewards = [torch.tensor(data.draw(st.lists(numbers, min_size=n, max_size=n))) for _ in range(sources)]
    tokens = [torch.tensor(data.draw(st.lists(numbers, min_size=2, max_size=2))) for _ in range(n)]
    parts = [single(f"r{i}", r) for i, r in enumerate(rewards)]
    total = torch.stack([t.sum() for t in tokens])
    parts.append(Scores(total, {"tokens": total}, tokens))
    a, b = (data.draw(st.lists(numbers, min_size=sources + 1, max_size=sources + 1)) for _ in range(2))
    one, two, both = (
        combine(list(zip(weights, parts, strict=True)), [2] * n)
        for weights in (a, b, [2 * x - y for x, y in zip(a, b, strict=True)])
    )
    assert torch.equal(both.total_B, 2 * one.total_B - two.total_B)
    for mixed, x, y in zip(both.token_rewards, one.token_rewards, two.token_rewards, strict=True):
        assert torch.equal(mixed, 2 * x - y)
    by_hand = sum(w * r.double() for w, r in zip(a, [*rewards, total], strict=True))
    assert torch.equal(one.total_B, by_hand.float())
    assert all(torch.equal(one.components[f"r{i}"], r) for i, r in enumerate(rewards))  # before their weights


def test_combination_by_hand_with_token_rewards(tmp_path):
    data = episodes()
    sources = {
        "words": (0.5, source_of(lambda completions: [len(c.split()) for c in completions], tmp_path)),
        "each": (2.0, FunctionSource("each", lambda completion_ids: [[1.0] * len(i) for i in completion_ids], "", tmp_path)),
        "silent": (0.0, FunctionSource("silent", lambda completions: [7.0] * len(completions), "", tmp_path)),
    }  # fmt: skip
    scores = CombinedSource(sources).score(data)
    assert scores.total_B.tolist() == [1 + 6, 2 + 8, 1 + 6]  # 3, 4 and 3 tokens
    assert [t.tolist() for t in scores.token_rewards] == [[2, 2, 2], [2, 2, 2, 2], [2, 2, 2]]
    assert scores.last_token_B.tolist() == [1, 2, 1]
    assert {k: v.tolist() for k, v in scores.components.items()} == {
        "mine": [2, 4, 2],
        "each": [3, 4, 3],
        "silent": [7, 7, 7],
    }


def test_one_source_of_weight_1_is_not_changed(folders):
    alone = ModelSource("r", RewardModel.from_pretrained(folders[0]), word_tokenizer()).score(episodes()).total_B
    built = build_source({"model": SourceConfig(model=folders[0])}, "cpu", word_tokenizer()).score(episodes())
    assert torch.equal(built.total_B, alone) and list(built.components) == ["model"]


# ---------------------------------------------------------------------------------------------- config


def config_of(**values):
    return build(SourceConfig, values, "r.yaml", "rewards.x.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"r\.yaml: rewards\.x\.model: give exactly one of model, ensemble, function, rule, url"),
        ({"model": "a", "url": "http://x"}, r"rewards\.x\.model and url: give exactly one"),
        ({"modle": "a"}, r"unknown key 'rewards\.x\.modle'; did you mean 'model'"),
        ({"model": "a", "soft": 3}, r"rewards\.x\.soft: belongs to a reward with `rule: length`, not to one with `model`"),
        ({"rule": "length", "soft": 3, "hard": 4, "ngram": 2}, r"ngram: belongs to a reward with `rule: repetition`"),
        ({"model": "a", "token_env": "T"}, r"token_env: belongs to a reward with `url`"),
        ({"ensemble": ["a"]}, r"ensemble: it has one member"),
        ({"ensemble": ["a", "b"], "std_weight": 1}, r"std_weight: 1\.0 needs aggregate: mean-std"),
        ({"ensemble": ["a", "b"], "aggregate": "mean-std", "std_weight": -1}, r"std_weight: -1\.0 is negative"),
        ({"ensemble": ["a", "b"], "aggregate": "median"}, r"aggregate: 'median' is not one of"),
        ({"function": "reward.py"}, r"rewards\.x\.function: 'reward\.py' names no function"),
        ({"rule": "length", "soft": 3}, r"hard is missing; `rule: length` needs soft and hard"),
        ({"rule": "length", "soft": 3, "hard": 3}, r"soft: 3 is not below hard \(3\)"),
        ({"rule": "repetition", "ngram": 0}, r"ngram: 0 is below 1"),
        ({"rule": "format"}, r"pattern is missing"),
        ({"rule": "format", "pattern": "("}, r"pattern: '\(' is no regular expression"),
        ({"rule": "lenght"}, r"rewards\.x\.rule: 'lenght' is not one of 'length', 'repetition', 'format'"),
        ({"url": "judge:8000"}, r"rewards\.x\.url: 'judge:8000' is no address; write http://host:port"),
        ({"url": "http://a b/"}, r"is no address"),
        ({"url": "http://host:99999/"}, r"is no address"),
        ({"url": "http://me:pass@host/"}, r"url: it holds a secret"),
        ({"url": "ftp://me:pass@host/"}, r"url: 'host/' is no address"),
        ({"url": "http://host/?api_key=123"}, r"url: it holds a secret"),
        ({"url": "http://host/", "timeout_s": 0}, r"timeout_s: 0\.0 is not above 0"),
        ({"url": "http://host/", "token_env": "sk-12345"}, r"token_env: this is no name of an environment variable"),
    ],
)  # fmt: skip
def test_mistakes_in_the_config(values, message):
    with pytest.raises(UserError, match=message) as caught:
        config_of(**values)
    assert "pass" not in str(caught.value) and "12345" not in str(caught.value)  # no secret is repeated


def test_the_short_form_and_names():
    assert named_rewards("runs/reward", {}) == {"model": SourceConfig(model="runs/reward")}
    rewards = {"a": SourceConfig(model="m"), "b": SourceConfig(model="n", weight=0)}
    assert named_rewards(None, rewards) is rewards
    for reward, given_rewards, message in [
        ("m", rewards, "reward and rewards are both given"),
        ("", {}, "reward is missing; add --reward PATH, or rewards"),
        ("", {"b": rewards["b"]}, "every weight is 0"),
        ("", {"my-judge": rewards["a"]}, "'my-judge' is no name"),
        ("", {"total": rewards["a"]}, "'total' is the name of another metric"),
    ]:
        with pytest.raises(ValueError, match=message):
            named_rewards(reward, given_rewards)


def test_what_cannot_be_built_is_named_by_its_key(tmp_path, folders, monkeypatch):
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    for config, message in [
        (SourceConfig(model=f"{tmp_path}/nowhere"), r"rewards\.x\.model: .*nowhere: no such folder"),
        (SourceConfig(ensemble=[folders[0], f"{tmp_path}/b"]), r"rewards\.x\.ensemble\[1\]: .*b: no such folder"),
        (SourceConfig(function="nowhere.py:f"), r"rewards\.x\.function: nowhere\.py: no such file"),
        (
            SourceConfig(url="http://host/", token_env="JUDGE_TOKEN"),
            r"rewards\.x\.token_env: .* JUDGE_TOKEN is not set",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            build_source({"x": config}, "cpu", word_tokenizer())
