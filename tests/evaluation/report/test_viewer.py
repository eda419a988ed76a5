"""The sample viewer's data: items joined over models, right and wrong, hostile texts, and texts cut where they are too many."""

import json

import pytest

from evaluation.report import viewer
from evaluation.report.collect import collect
from evaluation.report.items import SampleReader
from evaluation.report.page import embedded_json
from evaluation.report.viewer import is_wrong, sample_sets, viewer_data


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
    ("row", "wrong"),
    [
        ({"correct": True}, False),
        ({"acc": 0.0}, True),
        ({"outcome": 0.5}, False),
        ({"outcome": 0.0}, True),
        ({"margin": 0.0}, True),
        ({"margin": 0.1}, False),
        ({"refusal": True, "prompt_safe": True}, True),
        ({"refusal": True, "prompt_safe": False}, False),
        ({"refusal": False, "prompt_safe": False}, True),
        ({"refusal": False, "prompt_safe": False, "degenerate": True}, True),
        ({"refusal": False}, False),
        ({"refusal": False, "copied": True}, True),
        ({"nats": 3.0}, None),
    ],
)
def test_wrong(row, wrong):
    assert is_wrong(row) is wrong


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
