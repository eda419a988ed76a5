"""One loader for local files, embedded data and hub names."""

import json

import pytest

from data import load_documents, load_pairs, load_prompts, load_prompts_with_columns
from data.sources import HubName, parse_hub, read_hub
from launch.errors import UserError


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(documents):
    return [document.text for document in documents]


def test_text_file_as_one_document_or_many(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("One\nline.\n\n \nTwo.<|endoftext|>\nThree.\n")
    assert texts(load_documents(path)) == [path.read_text()]
    assert texts(load_documents(path, split_text="blank-line")) == ["One\nline.", "Two.<|endoftext|>\nThree."]
    assert texts(load_documents(path, split_text="endoftext")) == ["One\nline.\n\n \nTwo.", "Three."]
    assert load_documents(path, split_text="endoftext")[1].origin == f"{path}: part 2"


def test_documents_of_a_folder_and_another_field(tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"body": "first"}, {"body": ""}, {"body": None}, {"body": "second"}])
    (tmp_path / "b.txt").write_text("third")
    assert texts(load_documents(tmp_path, text_field="body")) == ["first", "second", "third"]


def test_document_errors(tmp_path):
    rows = jsonl(tmp_path / "rows.jsonl", [{"text": "a"}, {"txt": "b"}])
    with pytest.raises(UserError, match=r"rows\.jsonl: line 2: no field 'text'; did you mean 'txt'\?"):
        load_documents(rows)
    with pytest.raises(UserError, match=r"rows\.jsonl: line 1: 'text' is a number, not text"):
        load_documents(jsonl(rows, [{"text": 5}]))
    with pytest.raises(UserError, match="lone surrogate at position 1"):
        load_documents(jsonl(rows, [{"text": "a\ud800"}]))
    with pytest.raises(UserError, match="holds no text, only blanks"):
        load_documents(jsonl(rows, [{"text": " "}]))


def test_pairs_as_text_and_as_messages(tmp_path):
    user, assistant = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    rows = [
        {"prompt": "2+2=", "completion": "4"},
        {"prompt": [user], "completion": [assistant]},
        {"messages": [user, assistant, user, assistant, user]},
        {"id": "x", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    ]
    path = jsonl(tmp_path / "pairs.jsonl", rows)
    pairs = load_pairs(path)
    assert [pair.row() for pair in pairs] == [
        {"prompt": "2+2=", "completion": "4"},
        {"prompt": [user], "completion": [assistant]},
        {"prompt": [user, assistant, user], "completion": [assistant]},
        {"prompt": [user], "completion": [assistant]},
    ]
    assert pairs[2].origin == f"{path}: line 3"
    assert load_prompts(path) == [pair.prompt for pair in pairs]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "line 1: no field 'completion'"),
        ({"prompt": "a", "completion": " "}, "line 1: 'completion' is empty"),
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "must both be text or both be"),
        ({"promt": "a", "answer": "b"}, "only promt, answer; did you mean 'prompt'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant message"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no assistant message"),
        ({"messages": "hello"}, "line 1: 'messages' is a text; give a list"),
    ],
)
def test_pair_errors(tmp_path, row, message):
    with pytest.raises(UserError) as error:
        load_pairs(jsonl(tmp_path / "pairs.jsonl", [row]))
    assert message in str(error.value)


def test_prompts_of_a_text_file_are_its_lines(tmp_path):
    (tmp_path / "prompts.txt").write_text("first\n\nsecond \n")
    assert load_prompts(tmp_path / "prompts.txt") == ["first", "second "]
    with pytest.raises(UserError, match="no field 'prompt'; valid names: question"):
        load_prompts(jsonl(tmp_path / "p.jsonl", [{"question": "a"}]))


def test_prompts_with_their_columns(tmp_path):
    rows = [
        {"prompt": "2 + 2", "answer": "4", "level": 1},
        {"prompt": "x", "completion": "y", "source": "web"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "reference": "lost"},
        {"prompt": "with a reference", "reference": "r"},
    ]
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.txt").write_text("a line\n\n")
    found = load_prompts_with_columns(tmp_path)
    assert found == [
        {"prompt": "2 + 2", "reference": None, "answer": "4", "level": 1},
        {"prompt": "x", "reference": "y", "source": "web"},
        {"prompt": [{"role": "user", "content": "a"}], "reference": [{"role": "assistant", "content": "b"}]},
        {"prompt": "with a reference", "reference": "r"},
        {"prompt": "a line", "reference": None},
    ]
    assert [row["prompt"] for row in found] == load_prompts(tmp_path)
    jsonl(tmp_path / "many.jsonl", [{"prompt": f"p{i}", "n": i} for i in range(300)])
    for split in ("::train", "::eval", "::train/a"):
        chosen = load_prompts_with_columns(f"{tmp_path / 'many.jsonl'}{split}")
        assert [row["prompt"] for row in chosen] == load_prompts(f"{tmp_path / 'many.jsonl'}{split}")
        assert all(row["prompt"] == f"p{row['n']}" for row in chosen)


def test_embedded_pairs_are_prompts_with_references():
    pairs = load_pairs("embedded:docstrings::eval")
    rows = load_prompts_with_columns("embedded:docstrings::eval")
    assert rows == [{"prompt": pair.prompt, "reference": pair.completion} for pair in pairs]


def test_named_splits_cover_and_do_not_overlap(tmp_path):
    rows = [{"prompt": f"prompt {i % 300}", "completion": f"completion {i}"} for i in range(600)]
    path = jsonl(tmp_path / "pairs.jsonl", rows)
    parts = {
        name: {p.prompt for p in load_pairs(f"{path}::{name}")} for name in ("train", "eval", "train/a", "train/b")
    }
    assert parts["train"] | parts["eval"] == {row["prompt"] for row in rows}
    assert not parts["train"] & parts["eval"] and not parts["train/a"] & parts["train/b"]
    assert parts["train/a"] | parts["train/b"] == parts["train"]
    assert 0.05 < len(parts["eval"]) / 300 < 0.16
    assert set(load_prompts(f"{path}::eval")) == parts["eval"]  # the same split for every loader
    with pytest.raises(UserError, match="no such split; did you mean 'train'"):
        load_pairs(f"{path}::trian")


def test_embedded_names():
    with pytest.raises(UserError, match="no such embedded source; did you mean 'docstrings'"):
        load_pairs("embedded:docstring")
    with pytest.raises(UserError, match="holds documents, not pairs; use 'embedded:docstrings'"):
        load_pairs("embedded:python-prose")
    with pytest.raises(UserError, match="holds pairs, not documents; use 'embedded:python-prose'"):
        load_documents("embedded:docstrings")
    with pytest.raises(UserError, match="holds images, not pairs; use 'embedded:docstrings'"):
        load_prompts("embedded:digits")


def test_hub_names():
    assert parse_hub("hub:org/name") == HubName("org/name", None, None, "train")
    assert parse_hub("hub:org/na-me.2:conf@v1.0#test[:10]") == HubName("org/na-me.2", "conf", "v1.0", "test[:10]")
    for wrong in ("hub:", "hub:a/b/c", "hub:..", "hub:./folder"):
        with pytest.raises(UserError, match=r"write hub:org/name"):
            parse_hub(wrong)


def test_hub_rows_come_through_the_same_loaders(monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(path, config, **options):
        calls.append((path, config, options))
        return datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": None}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_prompts("hub:org/name:conf@abc#test") == ["a", "c"]
    assert calls == [("org/name", "conf", {"revision": "abc", "split": "test"})]  # no trust_remote_code
    with pytest.raises(UserError, match="hub:org/name: row 2: 'completion' is nothing"):
        load_pairs("hub:org/name")


def test_unreachable_hub_is_one_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as error:
        read_hub("hub:org/name")
    assert "could not be loaded (Couldn't reach 'org/name' on the Hub)" in str(error.value)
    assert "\n" not in str(error.value)


def test_tinyshakespeare(real):
    (document,) = load_documents(real("tinyshakespeare/input.txt"))
    assert len(document.text) == 1_115_394 and len(set(document.text)) == 65


def test_wikitext_has_another_suffix(real):
    (document,) = load_documents(real("wikitext2/wiki.valid.tokens"))
    assert len(document.text.split()) + document.text.count("\n") == 217_646  # the published count, with line ends
    assert len(load_documents(real("wikitext2/wiki.valid.tokens"), split_text="blank-line")) > 1_000


def test_sentiment(real):
    documents = load_documents(real("sentiment/sentence_polarity.jsonl"))
    assert len(documents) == 10_662 and documents[0].origin.endswith("line 1")


def test_conversations_of_fastchat(real):
    pairs = load_pairs(real("fastchat/dummy_conversation.json"))
    assert len(pairs) == 500
    assert pairs[0].prompt[0] == {"role": "user", "content": "Who are you?"}
    assert all(pair.completion[-1]["role"] == "assistant" for pair in pairs)
