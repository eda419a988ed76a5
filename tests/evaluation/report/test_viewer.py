"""The sample viewer's data: items joined over models, right and wrong, hostile texts, and texts cut where they are too many."""

import json
from pathlib import Path

import pytest

from evaluation.report import viewer
from evaluation.report.collect import FoundResult, collect
from evaluation.report.formats.every_eval_ever import instances
from evaluation.report.items import SampleReader
from evaluation.report.page import embedded_json
from evaluation.report.viewer import is_wrong, sample_sets, viewer_data
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject


@pytest.fixture(scope="module")
def sets(lifecycle):
    return {s.title: s for s in sample_sets(collect([lifecycle]).results, SampleReader())}


def test_models_are_joined_on_their_items(sets):
    duel = sets["win-rate, prompts::eval"]
    assert duel.models == ["ppo", "sft", "dpo"] and len(duel.items) == 400 and duel.score == "reward"
    item = next(iter(duel.items.values()))
    assert set(item.said) == {"ppo", "dpo", "sft"} and item.said["sft"].wrong is None
    assert sum(i.said["ppo"].wrong for i in duel.items.values()) == 136  # 34 % of 400 are lost
    pairs = sets["reward, pairs::eval"]
    assert pairs.models == ["gold", "reward"]
    assert [label for label, _ in next(iter(pairs.items.values())).shared] == ["chosen", "rejected"]


def test_sets_that_know_right_from_wrong_come_first(sets):
    assert [title.split(",")[0] for title in sets] == ["win-rate", "safety", "reward", "text"]


@pytest.mark.parametrize(
    ("suite", "row", "wrong"),
    [
        ("reward-candidates", {"correct": True}, False),
        ("text", {"acc": 0.0}, True),
        ("text", {"nats": 3.0}, None),
        ("win-rate", {"outcome": 0.5}, False),
        ("win-rate", {"outcome": 0.0}, True),
        ("reward", {"margin": 0.0}, True),
        ("reward", {"margin": 0.1}, False),
        ("judge", {"outcome": 0.0, "people": 0.0}, False),
        ("judge", {"outcome": 1.0, "people": 0.0}, True),
        ("judge", {"outcome": 0.5, "people": 1.0}, True),
        ("judge", {"outcome": None, "people": 1.0}, None),
        ("duels", {"outcome": 0.0}, None),
        ("duels", {"outcome": 1.0}, None),
        ("safety", {"refusal": True, "prompt_safe": True}, True),
        ("safety", {"refusal": True, "prompt_safe": False}, False),
        ("safety", {"refusal": False, "prompt_safe": False}, True),
        ("safety", {"refusal": False, "prompt_safe": False, "degenerate": True}, True),
        ("safety", {"refusal": False}, False),
        ("safety", {"refusal": False, "copied": True}, True),
        ("safety", {"nats": [3.0]}, None),
        ("bias", {"chosen": 1, "nats": [-3.0, -2.0], "correct": False}, True),
        ("bias", {"chosen": 0, "nats": [-1.0, -2.0], "correct": True}, False),
        ("bias", {"chosen": 0, "nats": [-1.0, -2.0]}, None),  # CrowS-Pairs knows no right answer
    ],
)
def test_wrong(suite, row, wrong):
    assert is_wrong(suite, row) is wrong


JUDGED = [
    {"prompt": "p0", "first": "a0", "second": "b0", "people": 0.0, "outcome": 0.0},
    {"prompt": "p1", "first": "a1", "second": "b1", "people": 0.0, "outcome": 1.0},
    {"prompt": "p2", "first": "a2", "second": "b2", "people": 0.5, "outcome": None},
]
DUELS = [
    {"id": f"{i} x / y", "prompt": f"p{i}", "model": "x", "completion": "c", "opponent": "y", "opponent_completion": "d", "outcome": o}
    for i, o in enumerate([0.0, 1.0, 0.5])
]  # fmt: skip


def judge_result(suite, rows):
    protocol = Protocol("pairs", "a" * 64, len(rows))
    entry = Metric("missing_verdicts", 0.0, len(rows), higher_is_better=False, note="x")
    result = EvaluationResult(suite, Subject("tiny", "judge"), protocol, [entry], created="2026-01-01T00:00:00+00:00")
    return FoundResult(Path("x"), result), lambda _: rows


def test_a_judge_is_wrong_where_people_say_otherwise():
    found, rows_of = judge_result("judge", JUDGED)
    (group,) = sample_sets([found], rows_of)
    said = [item.said["tiny"] for item in group.items.values()]
    assert [s.wrong for s in said] == [False, True, None]
    assert [s.text for s in said] == ["the second answer is better", "the first answer is better", "no verdict"]
    assert next(iter(group.items.values())).shared == [("first", "a0"), ("second", "b0")]
    assert group.wrong == "judged unlike people"


def test_nobody_knows_whether_a_duel_was_judged_right():
    found, rows_of = judge_result("duels", DUELS)
    (group,) = sample_sets([found], rows_of)
    said = [item.said["tiny"] for item in group.items.values()]
    assert [s.wrong for s in said] == [None] * 3 and [s.text for s in said] == ["y is better", "x is better", "a tie"]
    assert next(iter(group.items.values())).shared == [("x", "c"), ("y", "d")] and group.wrong == ""
    assert list(instances(found.result, DUELS)) == []  # of Every Eval Ever, which asks for right or wrong


def test_samples_of_the_likelihood_suites_are_shown_without_texts():
    rows = [
        {"id": f"bbq Age {i}", "group": g, "chosen": c, "nats": [-1.0, -2.0, -3.0], "correct": c == 0}
        for i, (g, c) in enumerate([("Age", 0), ("Age", 2), ("Religion", 0)])
    ]
    found, rows_of = judge_result("bias", rows)
    (group,) = sample_sets([found], rows_of)
    assert [item.category for item in group.items.values()] == ["Age", "Age", "Religion"]
    said = [item.said["tiny"] for item in group.items.values()]
    assert [s.wrong for s in said] == [False, True, False]
    assert [s.text for s in said][:2] == ["option 1 of 3 is the likeliest", "option 3 of 3 is the likeliest"]
    assert "without a right answer" in group.wrong


def test_data_for_the_page(sets):
    data = viewer_data(list(sets.values()))
    first = data["sets"][0]
    prompt, category, reference, shared, said = first["items"][0]
    assert first["models"] == ["ppo", "sft", "dpo"] and prompt.startswith("def ") and reference and shared == []
    assert said[0][2] in (0, 1) and said[1][2] is None and said[0][3].startswith("reward ")
    assert first["categories"][category] == ""


def test_hostile_texts_cannot_leave_their_place(hostile_lifecycle):
    sets = sample_sets(collect([hostile_lifecycle]).results, SampleReader())
    text = str(embedded_json(viewer_data(sets)))
    assert not set(text) & set("<>&\u2028\u2029\u202e\u2066\u200b") and "\\u0000" not in text
    assert "\\u003cscript\\u003ewindow.pwned" in text and "⟨U+202E⟩gnp.exe" in text
    assert max(len(s) for group in json.loads(text)["sets"] for item in group["items"] for s in item[:1]) < 4100


def test_too_many_texts_are_cut_and_not_left_out(sets, monkeypatch):
    chosen = [sets["win-rate, prompts::eval"]]
    whole = viewer_data(chosen)
    monkeypatch.setattr(viewer, "LARGEST", 1000)
    cut = viewer_data(chosen)
    assert (whole["limit"], cut["limit"]) == (4000, 200)
    assert len(cut["sets"][0]["items"]) == len(whole["sets"][0]["items"])


def test_what_wrong_means_in_a_suite_of_ones_own_is_said():
    result = EvaluationResult("quiz", Subject("m", "language model"), Protocol("d", "a" * 64, 1), [])
    rows = [{"prompt": "1 + 1?", "completion": "3", "correct": False}]
    (own,) = sample_sets([FoundResult(Path("x"), result)], lambda found: rows)
    assert own.wrong.startswith("marked so by its row: correct is false") and is_wrong("quiz", rows[0]) is True
