"""Every preference format becomes the explicit one, and there and back is the identity."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data import Preference, from_unpaired, split_prompt, to_implicit, to_unpaired
from data.formats import ASSISTANT_TURN, from_row
from data.readers import Row
from launch.errors import UserError


def row(**values):
    return Row("f.jsonl: line 7", values)


def preference(values):
    return from_row(row(**values))


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_explicit_row_with_every_field():
    values = {
        "prompt": "P",
        "chosen": "good",
        "rejected": "bad",
        "source": "crowd",
        "criteria": "relevance",
        "annotator": "ann-3",
        "strength": 2,
        "tie": False,
    }
    found = preference(values)
    assert found == Preference("P", "good", "bad", "crowd", "relevance", "ann-3", 2.0, False)
    assert found.origin == "f.jsonl: line 7" and found.row() == values
    assert from_row(row(**found.row())) == found


def test_explicit_messages():
    found = preference({"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]})
    assert found.prompt == [user("Hi")] and found.criteria == "overall" and found.strength is None


def test_csv_text_becomes_numbers_and_flags():
    found = preference({"prompt": "P", "chosen": "a", "rejected": "b", "strength": "0.5", "tie": "false", "source": ""})
    assert (found.strength, found.tie, found.source) == (0.5, False, "")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "P", "chosen": "a"}, "no field 'rejected'"),
        ({"prompt": "P", "chose": "a", "reject": "b"}, "only prompt, chose, reject; did you mean 'chosen'"),
        ({"prompt": "P", "chosen": "a", "rejected": ""}, "'rejected' is empty"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "'prompt' is empty"),
        ({"prompt": "P", "chosen": "a", "rejected": 3}, "'rejected' is a number, not text"),
        ({"prompt": "P", "chosen": "same", "rejected": "same "}, "chosen and rejected are the same text"),
        ({"prompt": "P", "chosen": "a", "rejected": [assistant("b")]}, "all be text or all be messages"),
        ({"prompt": "P", "chosen": "a", "rejected": "b", "strength": -1}, "strength is -1.0; give a finite"),
        ({"prompt": "P", "chosen": "a", "rejected": "b", "strength": float("nan")}, "strength is nan"),
        ({"prompt": "P", "chosen": "a", "rejected": "b", "strength": "much"}, "'strength' is 'much', not a number"),
        ({"prompt": "P", "chosen": "a", "rejected": "b", "strength": True}, "'strength' is True, not a number"),
        ({"prompt": "P", "chosen": "a", "rejected": "b", "tie": "maybe"}, "'tie' is 'maybe', not true or false"),
        ({"prompt": "P", "chosen": "a", "rejected": "b", "source": 5}, "'source' is 5, not text"),
        ({"chosen": "x one", "rejected": "x two"}, "no prompt field, and chosen and rejected share no beginning"),
        ({"chosen": [user("a")], "rejected": "b"}, "must both be text or both be messages"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}, "share no first message"),
        ({"chosen": [user("a")], "rejected": [user("a"), assistant("d")]}, "do not differ in their answers"),
        ({"prompt": "P", "response 1": "a", "response 2": "b", "label": 3}, "label is 3; give 0"),
        ({"prompt": "P", "response 1": "a", "response 2": "b"}, "no field 'label'"),
    ],
)
def test_faulty_rows_name_the_line_and_the_remedy(values, message):
    with pytest.raises(UserError) as error:
        preference(values)
    assert str(error.value).startswith("f.jsonl: line 7") and message in str(error.value)


# ---------------------------------------------------------------------------------------------- implicit prompt


def test_transcripts_are_cut_at_the_last_shared_turn():
    """Both answers start with "I am"; cutting at the first difference would leave these words in the prompt."""
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Who are you?\n\nAssistant:"
    found = preference({"chosen": start + " I am a model.", "rejected": start + " I am a person."})
    assert (found.prompt, found.chosen, found.rejected) == (start, " I am a model.", " I am a person.")
    assert to_implicit(found) == {"chosen": start + " I am a model.", "rejected": start + " I am a person."}


def test_transcripts_that_part_earlier_are_cut_there():
    start = "\n\nHuman: Hi\n\nAssistant:"
    chosen, rejected = start + " A\n\nHuman: B\n\nAssistant: C", start + " D\n\nHuman: B\n\nAssistant: E"
    assert split_prompt(chosen, rejected, "x")[0] == start


def test_half_a_mark_is_no_turn():
    chosen, rejected = "\n\nHuman: Hi\n\nAssistant: A", "\n\nHuman: Hi\n\nAssistance: A"
    with pytest.raises(UserError, match="share no beginning"):
        split_prompt(chosen, rejected, "x")


def test_empty_last_turn():
    start = "\n\nHuman: Hi\n\nAssistant:"
    with pytest.raises(UserError, match="the last assistant turn is empty"):
        split_prompt(start + " ", start + " B", "x")


def test_prompt_column_that_copies_the_first_message():
    """UltraFeedback: prompt is text while chosen and rejected are whole conversations."""
    values = {"prompt": "Hi", "chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")]}
    found = preference(values)
    assert (found.prompt, found.chosen, found.rejected) == ([user("Hi")], [assistant("a")], [assistant("b")])


@given(st.lists(st.text(max_size=9), min_size=1, max_size=4), st.text(max_size=20), st.text(max_size=20))
def test_implicit_round_trip_of_transcripts(turns, chosen, rejected):
    assume(chosen.strip() and rejected.strip() and chosen.strip() != rejected.strip())
    assume(not any(ASSISTANT_TURN in text for text in (chosen, rejected)))
    original = Preference("".join(f"\n\nHuman: {turn}{ASSISTANT_TURN}" for turn in turns), chosen, rejected)
    assert from_row(row(**to_implicit(original))) == original


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.text(), st.text())
def test_implicit_round_trip_of_messages(turns, chosen, rejected):
    assume(all(text.strip() for text in (*turns, chosen, rejected)) and chosen.strip() != rejected.strip())
    original = Preference([user(turn) for turn in turns], [assistant(chosen)], [assistant(rejected)])
    assert from_row(row(**to_implicit(original))) == original


# ---------------------------------------------------------------------------------------------- labelled pairs


@pytest.mark.parametrize(
    ("label", "chosen", "tie"), [(0, "one", False), (1, "two", False), (2, "one", True), ("1", "two", False)]
)
def test_labelled_pair(label, chosen, tie):
    found = preference({"prompt": "P", "response 1": "one", "response 2": "two", "label": label, "scenario": "chat"})
    assert (found.chosen, found.tie, found.source) == (chosen, tie, "chat")
    assert {found.chosen, found.rejected} == {"one", "two"}


# ---------------------------------------------------------------------------------------------- unpaired


def unpaired(*rows):
    return [
        Row(f"f: row {i}", dict(zip(("prompt", "completion", "label"), r, strict=True))) for i, r in enumerate(rows, 1)
    ]


@given(st.lists(st.tuples(st.sampled_from("pq"), st.integers(0, 9), st.integers(10, 19)), min_size=1, max_size=8))
def test_unpaired_round_trip(items):
    original = [Preference(p, f"good {a}", f"bad {b}") for p, a, b in items]
    rows = to_unpaired(original)
    assert len(rows) == 2 * len(original)
    back = from_unpaired([Row(f"f: row {i}", r) for i, r in enumerate(rows)])

    def texts(preference):
        return preference.prompt, preference.chosen, preference.rejected

    assert sorted(back, key=texts) == sorted(original, key=texts)


def test_ties_have_no_label():
    assert to_unpaired([Preference("p", "a", "b", tie=True)]) == []


def test_surplus_completions_are_left_out():
    rows = unpaired(("p", "a", True), ("p", "b", "1"), ("p", "c", 0), ("q", "d", "false"))
    assert [(p.prompt, p.chosen, p.rejected) for p in from_unpaired(rows)] == [("p", "a", "c")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("p", "a", True), ("q", "b", True)], "f: one class only: every label is True"),
        ([("p", "a", True), ("q", "b", False)], "no prompt has both a good and a bad completion"),
        ([("p", "a", "good"), ("p", "b", False)], "f: row 1: label is 'good'; give true"),
        ([("p", "a", True), ("p", "a", False)], "f: row 1: chosen and rejected are the same text"),
    ],
)
def test_unpaired_errors(rows, message):
    with pytest.raises(UserError) as error:
        from_unpaired(unpaired(*rows))
    assert message in str(error.value)
