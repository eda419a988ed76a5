"""One split for all stages: it depends on an item's own text alone, and what stages hold out is nested."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Document, Pair, Preference, hold_out
from data.named_splits import EVAL_SALT, hash_position, keep_split, lowest_hashes, parse_source, split_key, splits_of
from data.records import normalise
from launch.errors import UserError
from launch.provenance import SPLITS_VERSION

TEXT = st.text(min_size=1, max_size=12)
MANY = [f"text {i}" for i in range(20_000)]


@given(st.lists(TEXT, unique=True), st.lists(TEXT, unique=True), st.randoms(use_true_random=False))
def test_stable_under_reordering_and_addition(items, more, random):
    train, held = hold_out(items, 0.3)
    longer = list(dict.fromkeys(items + more))
    random.shuffle(longer)
    parts = hold_out(longer, 0.3)
    assert sorted(parts[0] + parts[1]) == sorted(longer)
    assert set(train) <= set(parts[0]) and set(held) <= set(parts[1])
    assert parts[0] == [x for x in longer if x in parts[0]]  # in their own order


@given(TEXT, st.floats(0.001, 0.99))
def test_equal_texts_are_on_one_side(text, share):
    train, held = hold_out([text, f" {text}\n", f"{text} "], share)
    assert not train or not held


def test_known_positions():
    """BLAKE2b-64 of b"salt\\0hello world", computed once; a change would move every user's held-out set."""
    digest = hashlib.blake2b(b"salt\0hello world", digest_size=8).hexdigest()
    assert hash_position("Hello  World\n", "salt") == (int(digest, 16) >> 11) / 2**53
    assert round(hash_position("hello world", "salt"), 12) == 0.728170769027
    assert hash_position("hello world", "other") != hash_position("hello world", "salt")
    assert hash_position("hello world", EVAL_SALT) == hash_position("hello world", "alignkit/eval")


def test_a_change_of_the_splits_raises_their_version():
    """Whoever moves a text to another split raises SPLITS_VERSION and writes both here."""
    homes = [sorted(splits_of(f"text {i}"))[-1] for i in range(400)]
    digest = hashlib.sha256("".join(homes).encode()).hexdigest()[:12]
    assert (SPLITS_VERSION, digest) == (2, "1224620eb5a1")


def test_a_stage_that_holds_out_never_trains_on_the_eval_split():
    evaluation = set(keep_split(MANY, "eval", "s"))
    for share in (0.001, 0.05, 0.3, 0.9):
        train, held = hold_out(MANY, share)
        assert evaluation <= set(held) and not evaluation & set(train)


def test_hold_outs_are_nested_and_the_same_for_a_source_and_its_training_split():
    for source in (MANY, keep_split(MANY, "train", "s"), keep_split(MANY, "train/a", "s")):
        small, large = (set(hold_out(source, share)[1]) for share in (0.05, 0.2))
        assert small < large < set(source)
    of_whole, of_train = set(hold_out(MANY, 0.1)[1]), set(hold_out(keep_split(MANY, "train", "s"), 0.1)[1])
    assert of_train == of_whole - set(keep_split(MANY, "eval", "s"))


@pytest.mark.parametrize("split", ["train", "train/a", "train/b"])
def test_the_share_is_a_share_of_what_may_be_trained_on(split):
    source = keep_split(MANY, split, "s")
    held = len(hold_out(source, 0.2)[1])
    assert abs(held - 0.2 * len(source)) < 4 * (len(source) * 0.2 * 0.8) ** 0.5
    assert hold_out(MANY, 0.0) == (MANY, [])


def test_shares_of_the_named_splits():
    for split, share in (("eval", 0.1), ("train", 0.9), ("train/a", 0.45), ("train/b", 0.45)):
        deviation = (20_000 * share * (1 - share)) ** 0.5
        assert abs(len(keep_split(MANY, split, "s")) - 20_000 * share) < 4 * deviation


def test_every_row_that_is_made_from_a_prompt_has_its_key():
    chat = [{"role": "user", "content": "Why?"}]
    assert split_key(Document("Why?", "x")) == "Why?"
    for prompt in ("Why?", chat):
        rows = [Pair(prompt, "a"), Pair(prompt, "b", "o"), Preference(prompt, "a", "b"), {"prompt": prompt, "n": 1}]
        assert {split_key(row) for row in rows} == {split_key(prompt)}
    assert split_key(chat) == "user: Why?"


@given(TEXT)
def test_named_splits(text):
    assert splits_of(text) in ({"eval"}, {"train", "train/a"}, {"train", "train/b"})


def test_named_split_of_a_source():
    assert parse_source("a/b.jsonl::train/a") == ("a/b.jsonl", "train/a") and parse_source("a:b") == ("a:b", None)
    items = MANY[:50]
    assert keep_split(items, None, "s") == items
    evaluation = keep_split(items, "eval", "s")
    assert 0 < len(evaluation) < 15 and sorted(evaluation + keep_split(items, "train", "s")) == sorted(items)
    with pytest.raises(UserError, match="none of 1 items is in the split 'eval'"):
        keep_split([keep_split(items, "train", "s")[0]], "eval", "s")


@given(
    st.lists(st.text(max_size=5), unique_by=normalise, max_size=12),
    st.integers(0, 12),
    st.randoms(use_true_random=False),
)
def test_the_lowest_hashes_do_not_depend_on_the_order(texts, n, random):
    kept = lowest_hashes(texts, str, n, "salt")
    by_hash = sorted(texts, key=lambda text: hash_position(text, "salt"))
    assert set(kept) == set(by_hash[:n]) and kept == [text for text in texts if text in kept]
    turned = list(texts)
    random.shuffle(turned)
    assert set(lowest_hashes(turned, str, n, "salt")) == set(kept)
    assert lowest_hashes(texts, str, None, "salt") == texts
