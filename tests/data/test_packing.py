"""Packed rows: every token is predicted once, nothing crosses a document, the model agrees with documents run alone."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import IGNORE, cut_windows, pack_documents
from data.packing import best_fit_decreasing, cut_lengths
from launch.errors import UserError

LENGTHS = st.lists(st.integers(0, 40), max_size=30)


def documents_of(lengths, start=1):
    """Documents of distinct tokens: document d is start + 100 d, start + 100 d + 1, ..."""
    return [np.arange(length) + start + 100 * d for d, length in enumerate(lengths)]


@given(LENGTHS, st.integers(1, 17))
def test_every_token_but_the_first_is_predicted_once(lengths, row):
    documents = documents_of(lengths)
    if not any(length > 1 for length in lengths):
        with pytest.raises(UserError, match="no document has two tokens"):
            pack_documents(documents, row, pad_id=0)
        return
    packed = pack_documents(documents, row, pad_id=0)
    used = packed.targets != IGNORE
    expected = sorted((int(a), int(b)) for d in documents for a, b in pairwise(d))
    got = sorted(zip(packed.input_ids[used].tolist(), packed.targets[used].tolist(), strict=True))
    assert got == expected
    assert packed.padding == packed.input_ids.size - len(expected)
    assert (packed.input_ids[~used] == 0).all()


@given(LENGTHS.filter(lambda lengths: max(lengths, default=0) > 1), st.integers(1, 17))
def test_positions_count_within_each_piece(lengths, row):
    packed = pack_documents(documents_of(lengths), row, pad_id=0)
    for ids, positions, targets in zip(packed.input_ids, packed.position_ids, packed.targets, strict=True):
        for cell in range(row):
            follows = cell > 0 and targets[cell - 1] == ids[cell] and targets[cell - 1] != IGNORE
            padding = cell > 0 and targets[cell] == IGNORE and targets[cell - 1] == IGNORE
            assert positions[cell] == (positions[cell - 1] + 1 if follows or padding else 0)


@given(st.lists(st.integers(0, 60), max_size=20), st.integers(1, 13))
def test_pieces_cover_documents_without_gap(lengths, row):
    document, start, length = cut_lengths(lengths, row)
    for d, total in enumerate(lengths):
        mine = [(int(s), int(n)) for i, s, n in zip(document, start, length, strict=True) if i == d]
        assert [cell for s, n in mine for cell in range(s, s + n)] == list(range(total))
        assert all(n == row for _, n in mine[:-1])


def slow_best_fit(lengths, row):
    """Best-fit decreasing as the textbook has it: look at every open row. Returns the fill of each row."""
    fills = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, fill in enumerate(fills) if fill + length <= row]
        if fitting:
            best = max(fitting, key=lambda i: fills[i])
            fills[best] += length
        else:
            fills.append(length)
    return sorted(fills)


@given(st.lists(st.integers(1, 24), max_size=60))
def test_best_fit_equals_the_textbook(lengths):
    rows = best_fit_decreasing(np.asarray(lengths, dtype=np.int64), 24)
    assert sorted(piece for pieces in rows for piece in pieces) == list(range(len(lengths)))
    assert sorted(sum(lengths[piece] for piece in pieces) for pieces in rows) == slow_best_fit(lengths, 24)


def test_known_packing():
    rows = best_fit_decreasing(np.asarray([4, 8, 1, 4, 2, 1]), 10)
    assert rows == [[1, 2, 5], [0, 3, 4]]  # 8; 4 + 4; the 2 fits both, into the newer; 1 and 1 into the other


def test_waste_on_two_million_characters():
    """The size of the embedded prose: 600k tokens in 7,000 documents of very different lengths, rows of 256."""
    generator = np.random.default_rng(0)
    documents = [np.ones(int(n), dtype=np.int32) for n in generator.lognormal(3.8, 1.1, 7000) + 2]
    packed = pack_documents(documents, 256, pad_id=0)
    assert packed.waste < 0.01
    assert packed.waste == packed.padding / (packed.count * 256)


def test_take_gives_int64_rows():
    packed = pack_documents(documents_of([5, 9, 3]), 6, pad_id=0)
    batch = packed.take(3, np.asarray([1, 0]))
    assert set(batch) == {"input_ids", "position_ids", "targets"}
    assert all(array.dtype == np.int64 and array.shape == (2, 6) for array in batch.values())
    assert (batch["input_ids"][0] == packed.input_ids[1]).all()


# ---------------------------------------------------------------------------------------------- windows


@given(st.integers(2, 12), st.integers(0, 60), st.integers(0, 9))
@settings(max_examples=50)
def test_windows_are_runs_of_the_text(row, more, epoch):
    tokens = np.arange(2 * row + more) + 7
    windows = cut_windows(tokens, row, seed=5)
    batch = windows.take(epoch, np.arange(windows.count))
    assert batch["input_ids"].shape == (windows.count, row) and 0 <= windows.offset(epoch) < row
    cells = batch["input_ids"].ravel()
    assert (cells == np.arange(len(cells)) + 7 + windows.offset(epoch)).all()
    assert (batch["targets"] == batch["input_ids"] + 1).all() and batch["targets"].max() <= tokens[-1]
    assert (batch["position_ids"] == np.arange(row)).all()


def test_window_offset_varies_by_epoch_and_reaches_both_ends():
    windows = cut_windows(np.arange(1000), 8, seed=0)
    offsets = [windows.offset(epoch) for epoch in range(100)]
    assert set(offsets) == set(range(8)) and offsets == [windows.offset(epoch) for epoch in range(100)]


def test_text_shorter_than_two_rows():
    with pytest.raises(UserError, match="the text has 15 tokens, less than two rows of 8"):
        cut_windows(np.arange(15), 8, seed=0)


# ---------------------------------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def tiny_model():
    torch = pytest.importorskip("torch")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.3,  # large, so that a leak between documents is far above the tolerance
    )
    return Qwen3ForCausalLM(config).eval()


DOCUMENTS = [np.random.default_rng(d).integers(1, 64, length) for d, length in enumerate((9, 6, 5, 31, 2, 14))]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logits_equal_those_of_each_document_alone(tiny_model, attention):
    """transformers makes the block-diagonal mask from the restarts of position_ids (5.23, masking_utils)."""
    import torch

    tiny_model.set_attn_implementation(attention)
    packed = pack_documents(DOCUMENTS, 16, pad_id=0)
    batch = {name: torch.from_numpy(array) for name, array in packed.take(0, np.arange(packed.count)).items()}
    compared = 0
    with torch.no_grad():
        ids, positions = batch["input_ids"], batch["position_ids"]
        together = tiny_model(input_ids=ids, position_ids=positions, use_cache=False).logits
        for row in range(packed.count):
            starts = [*(positions[row] == 0).nonzero().flatten().tolist(), 16]
            for start, end in pairwise(starts):
                alone = tiny_model(input_ids=ids[row : row + 1, start:end], use_cache=False).logits[0]
                torch.testing.assert_close(together[row, start:end], alone, rtol=1e-4, atol=1e-5)
                compared += end - start
        mixed = tiny_model(input_ids=ids, use_cache=False).logits  # without positions: attends across documents
    assert compared == ids.numel()
    assert (mixed - together).abs().max() > 0.1


def test_loss_equals_the_mean_over_documents(tiny_model):
    """sum over packed rows == sum over documents run alone; and transformers takes the targets as shift_labels."""
    import torch

    packed = pack_documents(DOCUMENTS[:3] + DOCUMENTS[4:], 32, pad_id=0)  # none is cut
    batch = {name: torch.from_numpy(array) for name, array in packed.take(0, np.arange(packed.count)).items()}
    targets = batch.pop("targets")
    with torch.no_grad():
        loss = tiny_model(**batch, labels=targets, shift_labels=targets, use_cache=False).loss
        total = count = 0
        for document in DOCUMENTS[:3] + DOCUMENTS[4:]:
            ids = torch.from_numpy(document)[None]
            total += tiny_model(input_ids=ids, labels=ids).loss * (len(document) - 1)
            count += len(document) - 1
    torch.testing.assert_close(loss, total / count, rtol=1e-5, atol=1e-6)
