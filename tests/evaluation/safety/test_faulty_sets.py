"""Every place of every set's row, exchanged for what JSON can hold there: items, or one sentence that names the row."""

import copy
import json

import pytest

from evaluation.safety.likelihood_sets import LIKELIHOOD_SETS
from launch.errors import UserError

TRIPLE = [
    {"gold_label": "stereotype", "sentence": "They are rude."},
    {"gold_label": "anti-stereotype", "sentence": "They are kind."},
    {"gold_label": "unrelated", "sentence": "They are boats."},
]
ENTRY = {"id": "a", "target": "they", "bias_type": "race", "context": "Who are they?", "sentences": TRIPLE}
COLUMNS = {"gold_label": [1, 0, 2], "sentence": [entry["sentence"] for entry in TRIPLE]}
QUESTION = {
    "category": "Age",
    "question_index": "1",
    "example_id": 7,
    "context": "They met.",
    "question": "Who forgot?",
    "question_polarity": "neg",
    "context_condition": "ambig",
    "label": 2,
    "ans0": "She",
    "ans1": "He",
    "ans2": "Not known",
    "answer_info": {"ans0": ["She", "F"], "ans1": ["He", "M"], "ans2": ["Not known", "unknown"]},
    "additional_metadata": {"stereotyped_groups": ["F"]},
}
MC = {"choices": ["Yes", "No"], "labels": [1, 0]}
TABLE = {
    "Category": "Law",
    "Question": "May I?",
    "Best Answer": "No",
    "Best Incorrect Answer": "Yes",
    "Correct Answers": "No",
    "Incorrect Answers": "Yes; Always",
}
OPINION = {
    "question": "I like it. Do you?",
    "answer_matching_behavior": " Yes",
    "answer_not_matching_behavior": [" No"],
}
ROWS = {
    "crows_pairs": {"sent_more": "He.", "sent_less": "She.", "stereo_antistereo": "stereo", "bias_type": "gender"},
    "winogender": {"sentid": "maid.guest.0.female.txt", "sentence": "The maid told the guest that she slept."},
    "stereoset": {"data": {"intrasentence": [ENTRY], "intersentence": [ENTRY]}},
    "stereoset columns": ENTRY | {"sentences": COLUMNS},
    "bbq": QUESTION,
    "bbq target_loc": QUESTION | {"target_loc": 0},
    "truthfulqa": {"question": "Is it?", "mc1_targets": MC, "mc2_targets": MC},
    "truthfulqa mapping": {
        "question": "Is it?",
        "mc1_targets": {"Yes": 1, "No": 0},
        "mc2_targets": {"Yes": 1, "No": 0},
    },
    "truthfulqa table": TABLE,
    "suggested_answer": TABLE,
    "sycophancy": OPINION,
}
FAULTS = [None, True, 3, 0.5, "", " ", "x", [], [3], [None], [[]], {}, {"x": 3}, "\ud800"]


def places(node, path=()):
    """The path of every value in nested JSON."""
    if path:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield from places(value, (*path, key))


def exchanged(node, path, fault):
    changed = copy.deepcopy(node)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = fault
    return changed


def load(folder, name, row):
    whole = name == "stereoset"  # the one that is no table
    path = folder / ("set.json" if whole else "set.jsonl")
    path.write_text(json.dumps(row) + "\n")
    return LIKELIHOOD_SETS[name.split()[0]].load(str(path)), path


@pytest.mark.parametrize("name", ROWS)
def test_whatever_stands_in_a_row_is_read_or_refused_in_one_sentence(tmp_path, name):
    items, path = load(tmp_path, name, ROWS[name])
    assert items and all(isinstance(o.text, str) and o.text.strip() for item in items for o in item.options)
    for place in places(ROWS[name]):
        for fault in FAULTS:
            try:
                items, _ = load(tmp_path, name, exchanged(ROWS[name], place, fault))
            except UserError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
                continue
            except Exception as error:
                raise AssertionError(f"{place} = {fault!r}") from error
            texts = [option.text.strip() for item in items for option in item.options]
            assert (items and str(fault) not in texts) or isinstance(fault, str), f"{place} = {fault!r}"


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("truthfulqa", {"mc1_targets": {"choices": ["a"], "labels": [0]}}, "'mc1_targets' has no answer with the label 1"),
        ("truthfulqa", {"mc2_targets": MC | {"labels": [1]}}, "'mc2_targets' has 2 choices and 1 label"),
        ("truthfulqa", {"mc2_targets": MC | {"choices": 3}}, "'mc2_targets' needs a list of choices and one of labels"),
        ("truthfulqa", {"mc1_targets": MC | {"choices": [3, "No"]}}, "choice 1 is a number, not text"),
        ("suggested_answer", {"Best Incorrect Answer": 3}, "'Best Incorrect Answer' is a number, not text"),
        ("sycophancy", {"answer_matching_behavior": []}, "'answer_matching_behavior' is a list without an answer"),
        ("sycophancy", {"answer_not_matching_behavior": None}, "'answer_not_matching_behavior' is nothing"),
        ("stereoset", {"data": {"intrasentence": [3]}}, "intrasentence 0: holds a number"),
        ("stereoset", {"data": {"intrasentence": 3}}, "'intrasentence' is a number"),
        ("stereoset", {"data": {"intrasentence": []}}, "holds no entry"),
        ("stereoset", {"data": {"intrasentence": [ENTRY | {"sentences": 3}]}}, "'sentences' is a number"),
        ("stereoset columns", {"sentences": COLUMNS | {"gold_label": 3}}, "sentences: 'gold_label' is a number, not a list"),
        ("bbq", {"additional_metadata": {"stereotyped_groups": None}}, "'stereotyped_groups' is no list of names"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, name, change, sentence):
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, name, ROWS[name] | change)
