"""What is trained on, what is held out, and the bytes that bits per byte are counted in."""

import json

import numpy as np
import pytest

from alignment.pretrain.config import PretrainConfig
from alignment.pretrain.corpus import choose_tokenizer, hold_out_documents, hold_out_end, read_corpus
from data.packing import IGNORE
from launch.config import build
from launch.errors import UserError
from tests.support import DATA, word_tokenizer


def make_config(**values):
    return build(PretrainConfig, {"vocab_size": 261, "context": 16, **values}, "test")


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "text.jsonl"
    # at most 64 bytes and the end token: no document is cut in rows of 64
    texts = [f"Document {i} says {'very ' * (i % 4)}little, naïvely." for i in range(200)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path, texts


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} of the book.\n" for i in range(100)))
    return path


def decode_rows(tokenizer, rows):
    """Each document piece of packed rows as text, with its last target."""
    batch = rows.take(0, np.arange(rows.count))
    pieces = []
    for inputs, positions, targets in zip(*(batch[k] for k in ("input_ids", "position_ids", "targets")), strict=True):
        real = targets != IGNORE
        starts = [i for i in range(len(inputs)) if real[i] and positions[i] == 0]
        for start, end in zip(starts, [*starts[1:], int(real.sum())], strict=True):
            pieces.append(tokenizer.decode([inputs[start], *targets[start:end]]))
    return pieces


def test_heldout_documents_are_those_of_the_hash_and_never_trained_on(documents):
    path, texts = documents
    corpus = read_corpus(make_config(data=str(path), heldout="hash:0.2", context=64))
    trained, held = (decode_rows(corpus.tokenizer, rows) for rows in (corpus.train, corpus.heldout.rows))
    assert sorted(p.removesuffix("<|endoftext|>") for p in held) == sorted(corpus.heldout.texts)
    assert sorted(p.removesuffix("<|endoftext|>") for p in trained) == sorted(set(texts) - set(corpus.heldout.texts))
    assert 20 <= len(held) <= 60
    assert all(p.endswith("<|endoftext|>") for p in held)


def test_the_split_survives_a_changed_corpus(documents):
    _, texts = documents
    _, held = hold_out_documents(texts, 0.2)
    _, fewer = hold_out_documents(texts[::-1][:100], 0.2)
    assert set(fewer) == set(held) & set(texts[100:])


def test_the_end_of_one_document_is_held_out(book):
    corpus = read_corpus(make_config(data=str(book), heldout="last:0.1"))
    text = book.read_text()
    cut = int(len(text) * 0.9)
    assert corpus.heldout.texts == [text[cut:]]
    assert corpus.train.tokens.tolist() == corpus.tokenizer(text[:cut], add_special_tokens=False)["input_ids"]
    # bytes: every character but the first is predicted once, and no end token is
    assert corpus.heldout.scored_bytes == len(text) - cut - 1
    assert int((corpus.heldout.rows.targets != IGNORE).sum()) == len(text) - cut - 1


def test_windows_start_elsewhere_in_each_epoch(book):
    train = read_corpus(make_config(data=str(book), heldout="last:0.1")).train
    firsts = {tuple(train.take(epoch, np.array([0]))["input_ids"][0]) for epoch in range(6)}
    assert len(firsts) > 3


def test_a_first_token_that_is_a_part_of_a_character_counts_its_own_bytes(tmp_path):
    path = tmp_path / "text.jsonl"
    texts = [f"漢字 {i} " + "plain words " * 3 for i in range(200)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    corpus = read_corpus(make_config(data=str(path), context=64))  # 261 entries: bytes alone, so 漢 is three tokens
    held = corpus.heldout.texts
    assert len(held) > 3
    assert corpus.heldout.scored_bytes == sum(len(t.encode()) for t in held) - len(held)


def test_scored_bytes_count_utf8_without_each_first_token(documents):
    path, _ = documents
    corpus = read_corpus(make_config(data=str(path), heldout="hash:0.2"))
    held = corpus.heldout.texts
    assert corpus.heldout.scored_bytes == sum(len(t.encode()) for t in held) - len(held)  # "D" is one byte
    assert len("naïvely".encode()) == 8


def test_counts(documents):
    path, texts = documents
    corpus = read_corpus(make_config(data=str(path), heldout="hash:0.2"))
    assert corpus.documents == len(texts)
    trained = set(texts) - set(corpus.heldout.texts)
    assert corpus.train_tokens == sum(len(t.encode()) + 1 for t in trained)
    assert corpus.used_vocabulary == len({byte for t in trained for byte in t.encode()}) + 1  # and the end token


def test_a_tokenizer_of_ones_own_is_used(documents, tmp_path):
    path, _ = documents
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    corpus = read_corpus(make_config(data=str(path), tokenizer=str(tmp_path / "tokenizer")))
    assert len(corpus.tokenizer) == 23


def test_a_tokenizer_with_pad_equal_to_eos_is_refused(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the padding token is the eos token"):
        choose_tokenizer(str(tmp_path), [], 300)
    with pytest.raises(UserError, match=r"tokenizer: .*absent: no such folder; give a folder"):
        choose_tokenizer(str(tmp_path / "absent"), [], 300)


def test_text_that_cannot_be_split_is_named(book, tmp_path):
    with pytest.raises(UserError, match=r"1 documents leave no (held-out|training) document"):
        read_corpus(make_config(data=str(book), heldout="hash:0.1"))
    with pytest.raises(UserError, match="needs one document, the source has 2"):
        hold_out_end(["a", "b"], 0.1)
    with pytest.raises(UserError, match="too few to cut"):
        hold_out_end(["a"], 0.1)
    short = tmp_path / "short.txt"
    short.write_text("Too short for rows of sixteen.")
    with pytest.raises(UserError, match="less than two rows of 16"):
        read_corpus(make_config(data=str(short), heldout="last:0.1"))


def test_tinyshakespeare_is_cut_where_nanogpt_cuts_it():
    path = DATA / "tinyshakespeare" / "input.txt"
    if not path.exists():
        pytest.skip("tinyshakespeare is not there; set ALIGNKIT_DATA")
    corpus = read_corpus(make_config(data=str(path), heldout="last:0.1", context=64))
    assert len(corpus.train.tokens) == 1_003_854  # nanoGPT data/shakespeare_char/prepare.py reports these two counts
    assert len(corpus.heldout.texts[0]) == 111_540
    assert corpus.used_vocabulary == 65
