import json

import pytest

from data.candidates import load_candidates
from data.comparisons import load_comparisons
from launch.errors import UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_comparisons_as_arenas_publish_them(tmp_path):
    rows = [
        {"model_a": "x", "model_b": "y", "winner": "model_a", "question_id": 7},
        {"model_a": "x", "model_b": "y", "winner": "model_b"},
        {"model_a": "x", "model_b": "y", "winner": "tie (bothbad)", "prompt": "p"},
        {"model_a": "x", "model_b": "y", "winner": "y"},
    ]
    found = load_comparisons(write(tmp_path / "a.jsonl", rows))
    assert [c.outcome for c in found] == [1.0, 0.0, 0.5, 0.0] and [c.prompt for c in found] == ["7", "", "p", ""]


def test_a_model_whose_name_begins_with_tie_can_win(tmp_path):
    rows = [
        {"model_a": "tiefighter-13b", "model_b": "y", "winner": winner}
        for winner in ("tiefighter-13b", "model_a", "y", "tie", "Tie (both bad)")
    ]
    assert [c.outcome for c in load_comparisons(write(tmp_path / "a.jsonl", rows))] == [1.0, 1.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"model_a": "x", "model_b": "model_a", "winner": "model_a"},
            "line 1: winner 'model_a' is the name of a model",
        ),
        ({"model_a": "Tie", "model_b": "y", "winner": "Tie"}, "line 1: winner 'Tie' is the name of a model"),
        ({"model_a": "x", "model_b": "x", "winner": "tie"}, "line 1: x meets itself"),
        ({"model_a": "x", "model_b": "y", "winner": "z"}, "line 1: winner is 'z'"),
        ({"model_a": "x", "winner": "tie"}, "model_b"),
    ],
)
def test_faulty_comparisons(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        load_comparisons(write(tmp_path / "a.jsonl", [row]))


def test_candidates_as_rewardbench_2_has_them(tmp_path):
    rows = [
        {"id": "ref:1", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Ties"},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": ["b"]},
    ]
    first, second = load_candidates(write(tmp_path / "a.jsonl", rows))
    assert first.answers == ("a", "b", "c") and len(first.right) == 1 and (first.id, first.subset) == ("ref:1", "Ties")
    assert second.right == ("a",) and second.id == "1" and second.subset == ""


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": [], "rejected": ["b"]}, "'chosen' is no list of answers"),
        ({"prompt": "p", "chosen": ["a"], "rejected": [" "]}, "'rejected' is no list of answers"),
        ({"prompt": "p", "chosen": ["a"], "rejected": [3]}, "'rejected' is no list of answers"),
        ({"prompt": "p", "chosen": ["a"], "rejected": ["b", "a"]}, "both chosen and rejected"),
        ({"prompt": "p", "chosen": ["a"]}, "rejected"),
    ],
)
def test_faulty_candidates(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        load_candidates(write(tmp_path / "a.jsonl", [row]))
