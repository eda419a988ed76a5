"""A split depends on the item's own text and the salt alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Document, Pair, split_by_hash, split_pairs
from data.named_splits import keep_split, parse_source, splits_of
from data.splits import hash_position
from launch.errors import UserError

TEXT = st.text(min_size=1, max_size=12)
FRACTIONS = {"train": 0.6, "valid": 0.1, "test": 0.3}


def homes(split):
    return {item: name for name, items in split.items() for item in items}


def identity(text):
    return text


@given(st.lists(TEXT, unique=True), st.lists(TEXT, unique=True), st.randoms(use_true_random=False))
def test_stable_under_reordering_and_addition(items, more, random):
    before = homes(split_by_hash(items, identity, FRACTIONS, "salt"))
    longer = list(dict.fromkeys(items + more))
    random.shuffle(longer)
    after = homes(split_by_hash(longer, identity, FRACTIONS, "salt"))
    assert after.keys() == set(longer)
    assert all(after[item] == name for item, name in before.items())


@given(st.lists(st.tuples(TEXT, st.sampled_from(["{}", " {}\n", "{} "]))))
def test_same_key_never_in_two_splits(items):
    keys = [form.format(text) for text, form in items]
    split = split_by_hash(keys, identity, FRACTIONS, "salt")
    seen = {}
    for name, members in split.items():
        for member in members:
            assert seen.setdefault(" ".join(member.split()), name) == name


@given(
    st.lists(TEXT),
    st.sampled_from([{"a": 1.0}, {"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 0.1, "b": 0.2, "c": 0.7}]),
)
def test_every_item_is_in_one_split_and_order_is_kept(items, fractions):
    split = split_by_hash(items, identity, fractions, "salt")
    assert list(split) == list(fractions)
    assert sorted(x for part in split.values() for x in part) == sorted(items)
    for part in split.values():
        assert part == [x for x in items if x in part]
    assert all(not split[name] for name, share in fractions.items() if share == 0)


def test_known_positions():
    """BLAKE2b-64 of b"salt\\0hello world", computed once; a change would move every user's held-out set."""
    import hashlib

    digest = hashlib.blake2b(b"salt\0hello world", digest_size=8).hexdigest()
    assert hash_position("Hello  World\n", "salt") == (int(digest, 16) >> 11) / 2**53
    assert round(hash_position("hello world", "salt"), 12) == 0.728170769027
    assert hash_position("hello world", "other") != hash_position("hello world", "salt")


def test_shares_hold_in_expectation():
    split = split_by_hash([f"text {i}" for i in range(20_000)], identity, FRACTIONS, "salt")
    for name, share in FRACTIONS.items():
        deviation = (20_000 * share * (1 - share)) ** 0.5
        assert abs(len(split[name]) - 20_000 * share) < 4 * deviation


def test_key_may_be_a_field_of_objects_rows_or_messages():
    documents = [Document(f"text {i}") for i in range(20)]
    by_field = split_by_hash(documents, "text", FRACTIONS, "s")
    assert by_field == split_by_hash(documents, lambda d: d.text, FRACTIONS, "s")
    rows = [{"prompt": [{"role": "user", "content": f"{i}"}]} for i in range(9)]
    assert sum(map(len, split_by_hash(rows, "prompt", FRACTIONS, "s").values())) == 9
    with pytest.raises(UserError, match="no field 'promt'; did you mean 'prompt'"):
        split_by_hash(rows, "promt", FRACTIONS, "s")
    with pytest.raises(UserError, match="a Document has no field 'prompt'"):
        split_by_hash(documents, "prompt", FRACTIONS, "s")


@pytest.mark.parametrize("fractions", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.5, "b": 0.6}, {}])
def test_fractions_are_checked(fractions):
    with pytest.raises(UserError, match="must be 0 or more and add up to 1"):
        split_by_hash(["x"], identity, fractions, "salt")


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8))))
def test_pairs_share_neither_prompt_nor_completion(items):
    unique = {prompt: completion for prompt, completion in items}
    pairs = [Pair(f"prompt {p}", f"completion {c}") for p, c in unique.items()]
    parts = split_pairs([*pairs, *pairs], {"train": 0.5, "test": 0.5}, "salt")
    assert not {p.prompt for p in parts["train"]} & {p.prompt for p in parts["test"]}
    assert not {p.completion for p in parts["train"]} & {p.completion for p in parts["test"]}


def test_pairs_with_a_prompt_twice_are_refused():
    with pytest.raises(UserError, match=r"b: the prompt of a again, with another completion"):
        split_pairs([Pair("Hi", "x", "a"), Pair(" hi", "y", "b")], {"train": 1.0}, "salt")


@given(TEXT)
def test_named_splits(text):
    names = splits_of(text)
    assert names in ({"eval"}, {"train", "train/a"}, {"train", "train/b"})


def test_named_split_of_a_source():
    assert parse_source("a/b.jsonl::train/a") == ("a/b.jsonl", "train/a") and parse_source("a:b") == ("a:b", None)
    items = [f"item {i}" for i in range(50)]
    assert keep_split(items, None, identity, "s") == items
    evaluation = keep_split(items, "eval", identity, "s")
    assert 0 < len(evaluation) < 15 and sorted(evaluation + keep_split(items, "train", identity, "s")) == sorted(items)
    with pytest.raises(UserError, match="none of 1 items is in the split 'eval'"):
        keep_split([keep_split(items, "train", identity, "s")[0]], "eval", identity, "s")
