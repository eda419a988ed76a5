"""Preferences load with every fault named, save whole, and come out of rankings with the right winners."""

import json
import math

import pytest

from data import (
    Preference,
    describe_preferences,
    load_preferences,
    pairs_from_ranking,
    save_preferences,
    validate_preferences,
)
from launch.errors import UserError

GOOD = {"prompt": "P", "chosen": "good", "rejected": "bad"}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_save_and_load(tmp_path):
    originals = [
        Preference("Frage \u2028 é", "ja", "nein", "s", "coherence", "a1", 0.25, False),
        Preference(
            [{"role": "user", "content": "x"}],
            [{"role": "assistant", "content": "y"}],
            [{"role": "assistant", "content": "z"}],
        ),
        Preference("p", "a", "b", tie=True),
    ]
    path = tmp_path / "new" / "preferences.jsonl"
    save_preferences(originals, path)
    loaded = load_preferences(path)
    assert loaded == originals and loaded[2].origin == f"{path}: line 3"
    assert [p.name for p in path.parent.iterdir()] == ["preferences.jsonl"]


def test_nothing_is_written_when_saving_fails(tmp_path):
    path = tmp_path / "p.jsonl"
    save_preferences([Preference("p", "a", "b")], path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="no preferences to save"):
        save_preferences([], path)
    with pytest.raises(ValueError):
        save_preferences([Preference("p", "a", "b", strength=math.inf)], path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_first_fault_is_named_and_the_rest_counted(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", [GOOD, GOOD | {"chosen": ""}, GOOD, GOOD | {"rejected": "good"}])
    with pytest.raises(UserError) as error:
        load_preferences(path)
    assert str(error.value) == (
        f"{path}: line 2: 'chosen' is empty; fill it or remove the row "
        "(2 of 4 rows are invalid; invalid='drop' leaves them out)"
    )
    assert [p.origin for p in load_preferences(path, invalid="drop")] == [f"{path}: line 1", f"{path}: line 3"]


def test_data_that_can_teach_nothing(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(UserError, match="one class only: every row is a tie"):
        load_preferences(jsonl(path, [GOOD | {"tie": True}] * 3))
    with pytest.raises(UserError, match=r"none of 1 rows is valid; the first fault: .*line 1"):
        load_preferences(jsonl(path, [GOOD | {"chosen": "bad"}]), invalid="drop")
    labelled = {"prompt": "P", "response 1": "a", "response 2": "b", "label": 1}
    with pytest.raises(UserError, match="one class only: all 4 rows have label 1; check the label column"):
        load_preferences(jsonl(path, [labelled] * 4))
    assert len(load_preferences(jsonl(path, [labelled] * 4 + [labelled | {"label": 0}]))) == 5


def test_unpaired_file(tmp_path):
    rows = [{"prompt": "P", "completion": c, "label": g} for c, g in [("good", True), ("bad", False)]]
    (found,) = load_preferences(jsonl(tmp_path / "kto.jsonl", rows))
    assert (found.chosen, found.rejected) == ("good", "bad")


def test_named_split_goes_by_the_prompt(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", [GOOD | {"prompt": f"P{i // 2}", "chosen": f"good {i}"} for i in range(200)])
    train, held_out = (load_preferences(f"{path}::{name}") for name in ("train", "eval"))
    assert len(train) + len(held_out) == 200 and len(held_out) > 4
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}


def test_validate_in_memory():
    good = Preference("p", "a", "b")
    validate_preferences([good])
    with pytest.raises(UserError, match="preferences: row 2: chosen and rejected are the same"):
        validate_preferences([good, Preference("p", "a", "a")])
    with pytest.raises(UserError, match="f: line 4: 'rejected' is empty"):
        validate_preferences([Preference("p", "a", " ", origin="f: line 4")])
    with pytest.raises(UserError, match="no preferences; give at least one"):
        validate_preferences([])


# ---------------------------------------------------------------------------------------------- rankings


def outcomes(preferences):
    return [(p.chosen, p.rejected, p.strength, p.tie) for p in preferences]


def test_ranking_gives_all_pairs_with_their_gaps():
    pairs = pairs_from_ranking("P", ["b", "c", "a"], [2.0, 0.5, 3.0], source="rm", annotator="judge", criteria="c")
    assert outcomes(pairs) == [("a", "c", 2.5, False), ("b", "c", 1.5, False), ("a", "b", 1.0, False)]
    assert {(p.prompt, p.source, p.annotator, p.criteria) for p in pairs} == {("P", "rm", "judge", "c")}


def test_ranking_ties_by_margin():
    texts, scores = ["a", "b", "c"], [1.0, 1.0, 0.0]
    assert outcomes(pairs_from_ranking("P", texts, scores)) == [("a", "c", 1.0, False), ("b", "c", 1.0, False)]
    kept = pairs_from_ranking("P", texts, scores, keep_ties=True)
    assert outcomes(kept)[-1] == ("a", "b", 0.0, True)
    assert pairs_from_ranking("P", texts, scores, tie_margin=1.0) == []
    assert [p.tie for p in pairs_from_ranking("P", texts, scores, tie_margin=1.0, keep_ties=True)] == [True] * 3


def test_ranking_edges():
    assert pairs_from_ranking("P", ["same", "same "], [1.0, 2.0]) == []
    assert pairs_from_ranking("P", ["a"], [1.0]) == pairs_from_ranking("P", [], []) == []
    assert len(pairs_from_ranking("P", list("abcde"), [1, 2, 3, 4, 5])) == 10
    with pytest.raises(ValueError, match="2 completions and 1 scores"):
        pairs_from_ranking("P", ["a", "b"], [1.0])
    with pytest.raises(ValueError, match="finite"):
        pairs_from_ranking("P", ["a", "b"], [1.0, math.nan])


def test_statistics():
    preferences = [
        Preference("p", "one two three", "one", source="x", strength=2.0),
        Preference("p", "one", "one two", source="x", strength=1.0, annotator="a"),
        Preference("q", "one two", "two one", criteria="c"),
        Preference("q", [{"role": "assistant", "content": "a b c d"}], [{"role": "assistant", "content": "e"}]),
        Preference("r", "a", "b b b b", tie=True),
    ]
    assert describe_preferences(preferences) == {
        "n": 5,
        "duplicates": 0,
        "exact_duplicates": 0,
        "ties": 1,
        "prompts": 3,
        "chosen_words": 2.5,
        "rejected_words": 1.5,
        "longer_chosen": 2 / 3,
        "longer_chosen_n": 3,
        "mean_strength": 1.5,
        "sources": {"x": 2, "": 3},
        "criteria": {"overall": 4, "c": 1},
        "annotators": {"": 4, "a": 1},
    }
    assert json.dumps(describe_preferences(preferences[-1:]))


# ---------------------------------------------------------------------------------------------- real sets


def test_hh_rlhf_harmless(real):
    path = real("hh_rlhf_harmless/harmless-base.test.jsonl.gz")
    with pytest.raises(UserError, match=r"line 87: the last assistant turn is empty .*\(4 of 2312 rows are invalid"):
        load_preferences(path)
    preferences = load_preferences(path, invalid="drop")
    assert len(preferences) == 2_308
    assert all(p.prompt.endswith("\n\nAssistant:") and p.chosen.startswith(" ") for p in preferences)
    whole = sum("\n\nAssistant:" in p.chosen or "\n\nAssistant:" in p.rejected for p in preferences)
    assert whole == 5  # dialogues that part before their last turn
    statistics = describe_preferences(preferences)
    assert round(statistics["longer_chosen"], 3) == 0.440 and statistics["prompts"] == 2_306


def test_autoj_pairwise(real):
    preferences = load_preferences(real("autoj_pairwise/autoj_pairwise.jsonl.gz"), invalid="drop")
    assert len(preferences) == 1_382 and sum(p.tie for p in preferences) == 365
    assert len({p.source for p in preferences}) == 58
    assert round(describe_preferences(preferences)["longer_chosen"], 3) == 0.714
