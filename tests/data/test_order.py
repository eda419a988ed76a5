"""The global batch of a step is one thing, whatever the processes and wherever the run resumed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import batch_rows, cut_windows, epoch_order, global_batch, pack_documents, rank_part
from launch.errors import UserError


def flat(parts):
    return [(epoch, int(index)) for epoch, indices in parts for index in indices]


@given(st.integers(1, 40), st.integers(1, 64), st.integers(0, 5))
def test_steps_visit_every_row_once_an_epoch(count, batch_size, seed):
    steps = -(-3 * count // batch_size)
    visited = [pair for step in range(steps) for pair in flat(batch_rows(step, batch_size, count, seed))]
    assert len(visited) == steps * batch_size
    for epoch in range(3):
        assert sorted(index for e, index in visited[: 3 * count] if e == epoch) == list(range(count))
    assert [e for e, _ in visited] == sorted(e for e, _ in visited)


def test_epochs_and_seeds_differ_and_repeat():
    first = epoch_order(100, 0, 0)
    assert sorted(first.tolist()) == list(range(100)) and first.tolist() != list(range(100))
    assert (first == epoch_order(100, 0, 0)).all()
    assert (first != epoch_order(100, 0, 1)).any() and (first != epoch_order(100, 1, 0)).any()
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1  # a cached order must not be changed by a caller


def rows():
    return pack_documents([np.arange(i, i + 7) for i in range(0, 200, 3)], row=8, pad_id=0)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
def test_ranks_together_see_the_global_batch(world):
    for step in (0, 5, 17):
        whole = global_batch(rows(), step, 12, seed=3)
        parts = [rank_part(whole, rank, world) for rank in range(world)]
        for name, array in whole.items():
            assert (np.concatenate([part[name] for part in parts]) == array).all()
            assert {len(part[name]) for part in parts} == {12 // world}


def test_batch_that_does_not_divide():
    with pytest.raises(UserError, match="batch_size: 12 rows do not divide by 5 processes; give a multiple of 5"):
        rank_part(global_batch(rows(), 0, 12, seed=3), 0, 5)


def test_batch_across_the_end_of_an_epoch_of_windows():
    windows = cut_windows(np.arange(1000), row=10, seed=1)
    step = windows.count // 8  # rows 96.. of epoch 0 and the first of epoch 1
    parts = batch_rows(step, 8, windows.count, seed=1)
    assert [epoch for epoch, _ in parts] == [0, 1]
    batch = global_batch(windows, step, 8, seed=1)
    expected = [windows.offset(epoch) + 10 * index for epoch, index in flat(parts)]
    assert batch["input_ids"][:, 0].tolist() == expected
