import numpy as np
import pytest

from evaluation import statistics as s
from evaluation.statistics.jackknife import block_ids
from launch.seeding import numpy_generator


def draw(name, n):
    return numpy_generator(8, name).gamma(2.0, 1.0, n)


def leave_out(x, ids, statistic):
    return [statistic(x[ids != block]) for block in np.unique(ids)]


def test_one_at_a_time_of_a_mean_is_the_textbook_interval():
    x = draw("mean", 25)
    found, plain = s.jackknife(x.mean(), 25, leave_out(x, np.arange(25), np.mean)), s.mean(x)
    assert (found.stderr, found.low, found.high) == (
        pytest.approx(plain.stderr), pytest.approx(plain.low), pytest.approx(plain.high)
    )  # fmt: skip


def test_two_sets_add_their_variances_with_satterthwaite_s_degrees():
    x, y = draw("first", 30), draw("second", 12) * 3
    parts = [leave_out(z, np.arange(len(z)), np.mean) for z in (x, y)]
    found = s.jackknife(x.mean() - y.mean(), 30, parts[0], [-v for v in parts[1]])
    from scipy import stats

    welch = stats.ttest_ind(x, y, equal_var=False).confidence_interval()
    assert (found.low, found.high) == (pytest.approx(welch.low), pytest.approx(welch.high))


def test_log_scale_is_symmetric_in_the_logarithm_and_plain_where_a_value_is_not_positive():
    found = s.jackknife(2.0, 9, [1.8, 2.0, 2.2], log=True)
    assert found.low * found.high == pytest.approx(4.0) and found.method == "jackknife, log scale"
    assert s.jackknife(2.0, 9, [-1.8, 2.0, 2.2], log=True).method == "jackknife"


def test_blocks_are_of_one_size_and_cut_across_the_order_of_the_files():
    ids = block_ids(200, 10, 0, "test")
    assert np.bincount(ids).tolist() == [20] * 10
    assert len(set(ids[:20])) > 5  # files often come sorted by class: a block must not be one class


def test_one_block_claims_nothing():
    assert s.jackknife(1.0, 1, [1.0]).low is None and s.jackknife(1.0, 1).low is None
    same = s.jackknife(1.0, 4, [1.0, 1.0, 1.0])
    assert (same.low, same.high, same.stderr) == (1.0, 1.0, 0.0)
