"""The row order of the TRL stages, and how a batch is divided."""

import numpy as np
import pytest

from alignment.trl_stage.config import divide_batch
from alignment.trl_stage.order import POOL, EpochSampler, length_grouped_order
from launch.errors import UserError

LENGTHS = [int(x) for x in np.random.default_rng(0).integers(1, 100, 1000)]


def test_every_row_is_visited_and_the_last_batch_is_filled_up():
    order = length_grouped_order(LENGTHS, 32, seed=3, epoch=0)
    assert len(order) == 1024
    assert set(order) == set(range(1000))
    repeated = np.flatnonzero(np.bincount(order) == 2)
    assert len(repeated) == 24


def test_fewer_rows_than_a_batch():
    assert sorted(length_grouped_order([5, 9, 2], 8, seed=0, epoch=0)) == sorted([0, 1, 2] * 2 + [*_first_two(3, 0)])


def _first_two(rows, seed):
    from launch.seeding import permutation

    return permutation(rows, seed, "trainer/row order", 0)[:2].tolist()


def test_batches_hold_rows_of_similar_length():
    order = np.array(length_grouped_order(LENGTHS * 8, 16, seed=0, epoch=0)).reshape(-1, 16)
    spread = np.ptp(np.array(LENGTHS * 8)[order], axis=1)
    assert spread.max() <= 25  # of lengths 1 to 99, in pools of POOL * 16 rows; random batches spread over about 88
    assert POOL * 16 < 1000


def test_order_depends_on_seed_and_epoch_alone():
    first = length_grouped_order(LENGTHS, 32, seed=0, epoch=0)
    assert first == length_grouped_order(LENGTHS, 32, seed=0, epoch=0)
    assert first != length_grouped_order(LENGTHS, 32, seed=0, epoch=1)
    assert first != length_grouped_order(LENGTHS, 32, seed=1, epoch=0)


def test_rows_meet_others_in_the_next_epoch():
    batches = [
        {
            frozenset(rows)
            for rows in np.array(length_grouped_order(LENGTHS, 8, seed=0, epoch=e)).reshape(-1, 8).tolist()
        }
        for e in (0, 1)
    ]
    assert len(batches[0] & batches[1]) <= 2


def test_sampler_asks_for_the_epoch_when_it_is_iterated():
    epoch = 0
    sampler = EpochSampler(LENGTHS, 32, 0, lambda: epoch)
    assert len(sampler) == 1024
    first = list(sampler)
    epoch = 1
    assert list(sampler) == length_grouped_order(LENGTHS, 32, 0, 1) != first


@pytest.mark.parametrize(
    ("batch", "micro", "world", "expected"),
    [(32, 0, 1, (32, 1)), (32, 8, 1, (8, 4)), (32, 8, 2, (8, 2)), (32, 99, 4, (8, 1)), (6, 1, 2, (1, 3))],
)
def test_divide_batch(batch, micro, world, expected):
    assert divide_batch(batch, micro, world) == expected


def test_batches_that_do_not_divide_are_errors():
    with pytest.raises(UserError, match="batch_size: 9 does not divide by 2 processes"):
        divide_batch(9, 0, 2)
    with pytest.raises(UserError, match="micro_batch_size: 5 does not divide the 16 rows of each process"):
        divide_batch(32, 5, 2)
