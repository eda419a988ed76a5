"""Completions files: one reader and one writer, and rows of two files in pairs."""

import dataclasses
import json

import pytest

from data.completions import align, load_completions, reference_text, save_completions
from launch.errors import UserError
from tests.evaluation.rows import completion, write_completions


def test_a_reference_of_any_kind_becomes_text():
    assert [reference_text(value) for value in (None, "a", 4, [1, "b"])] == [None, "a", "4", "[1, 'b']"]


def test_load_reads_file_or_folder(tmp_path):
    path = write_completions(tmp_path / "completions.jsonl", [{"prompt": "ab", "completion": "c", "reference": "d"}])
    (row,) = load_completions(path)
    assert (row.id, row.text, row.finished, row.completion_ids[-1], row.reference) == ("0", "c", True, 257, "d")
    assert load_completions(tmp_path) == [row] and row.origin.endswith("line 1")


def test_what_is_saved_is_loaded(tmp_path):
    chat = [{"role": "user", "content": "Why?\u2028"}]
    rows = [
        completion("p", "a\nb", reference="r"),
        dataclasses.replace(completion(chat, "", finished=False), score=-0.5),
    ]
    save_completions(rows, tmp_path / "completions.jsonl")
    found = load_completions(tmp_path)
    assert [dataclasses.replace(row, origin="") for row in found] == [
        dataclasses.replace(row, origin="") for row in rows
    ]


def test_a_reference_is_text_without_roles(tmp_path):
    chat = [{"role": "assistant", "content": "Because."}]
    path = write_completions(tmp_path / "c.jsonl", [{"prompt": "a", "completion": "b", "reference": chat}])
    assert load_completions(path)[0].reference == reference_text(chat) == "Because."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"completion": None}, "'completion' is a NoneType, not str"),
        ({"finished": "yes"}, "'finished' is a str, not bool"),
        ({"completion_ids": [1, -2]}, "'completion_ids' holds something other than token ids"),
        ({"prompt_ids": "1 2"}, "'prompt_ids' is a str, not list"),
        ({"score": "high"}, "'score' is 'high', no finite number"),
        ({"score": True}, "'score' is True, no finite number"),
    ],
)
def test_faulty_rows_are_named(tmp_path, change, words):
    path = write_completions(
        tmp_path / "c.jsonl",
        [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"} | change]
        if "completion" not in change
        else [{"prompt": "a", "completion": "b"}],
    )
    if "completion" in change:
        row = json.loads(path.read_text()) | change | {"id": 1}
        path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"line 2: {words}"):
        load_completions(path)


def test_missing_field_missing_file_and_double_id(tmp_path):
    path = write_completions(tmp_path / "c.jsonl", [{"prompt": "a", "completion": "b", "id": 7}] * 2)
    with pytest.raises(UserError, match=r"line 2: id 7 was used before, at .*line 1"):
        load_completions(path)
    path.write_text('{"id": 1, "prompt": "a"}\n')
    with pytest.raises(UserError, match="line 1: no field 'completion'"):
        load_completions(path)
    with pytest.raises(UserError, match="run `alignkit generate` first"):
        load_completions(tmp_path / "nothing.jsonl")


def test_align_pairs_samples_of_the_same_prompts():
    ours = [completion("p", "1"), completion("q", "2"), completion("p", "3")]
    theirs = [completion("q", "a"), completion("p", "b"), completion("p", "c")]
    assert [(a.text, b.text) for a, b in align(ours, theirs)] == [("1", "b"), ("2", "a"), ("3", "c")]


def test_align_refuses_different_prompts():
    with pytest.raises(UserError, match="has no completion of this prompt"):
        align([completion("p"), completion("z")], [completion("p"), completion("q")])
    with pytest.raises(UserError, match="is missing in the other file"):
        align([completion("p")], [completion("p"), completion("q")])
