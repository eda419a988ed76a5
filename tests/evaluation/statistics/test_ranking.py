"""Rankings: groups, rank intervals, what a set can resolve."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import statistics as s
from launch.seeding import numpy_generator


def scores(effects, n, name, spread=1.0):
    """(n, M): items of unlike difficulty, models that differ by `effects`."""
    g = numpy_generator(5, name)
    return g.normal(0, 3, (n, 1)) + np.asarray(effects) + g.normal(0, spread, (n, len(effects)))


def test_groups_chain_through_overlap():
    # a and c do not overlap, but b overlaps both: no boundary between them can be defended
    assert s.significance_groups([5, 4, 3], [6, 5.5, 4.5]) == [1, 1, 1]
    assert s.significance_groups([5, 3, 0], [6, 4, 2]) == [1, 2, 3]
    assert s.significance_groups([0, 5, 5.5], [1, 6, 7]) == [3, 1, 1]
    assert s.significance_groups([0, 5, 5.5], [1, 6, 7], higher_is_better=False) == [1, 2, 2]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=8), st.booleans())
def test_overlapping_entries_are_never_ranked_apart(pairs, higher):
    low, high = [a for a, _ in pairs], [a + w for a, w in pairs]
    ranks = s.significance_groups(low, high, higher)
    for i, j in itertools.combinations(range(len(pairs)), 2):
        if low[i] <= high[j] and low[j] <= high[i]:
            assert ranks[i] == ranks[j]
        elif ranks[i] != ranks[j]:
            better = i if (low[i] > high[j]) == higher else j
            assert ranks[better] == min(ranks[i], ranks[j])


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=8), st.booleans())
def test_rank_intervals_hold_every_order_that_the_intervals_allow(pairs, higher):
    low, high = [a for a, _ in pairs], [a + w for a, w in pairs]
    found = s.rank_intervals(s.better_by_intervals(low, high, higher))
    g = numpy_generator(0, "orders")
    for _ in range(20):
        values = np.array([g.uniform(a, b) for a, b in zip(low, high)]) * (1 if higher else -1)
        for m, interval in enumerate(found):
            assert interval.best <= 1 + int((values > values[m]).sum()) <= interval.worst


def test_paired_items_tell_apart_what_intervals_cannot():
    x = scores([0.6, 0.0, 0.0], 100, "apart")
    intervals = [s.mean(column) for column in x.T]
    assert s.significance_groups([e.low for e in intervals], [e.high for e in intervals]) == [1, 1, 1]
    better = s.better_by_items(x)
    assert s.groups_from_relation(x.mean(0), better) == [1, 2, 2]
    assert s.rank_intervals(better) == [s.RankInterval(1, 1), s.RankInterval(2, 3), s.RankInterval(2, 3)]
    worse = s.better_by_items(x, higher_is_better=False)
    assert (worse == better.T).all()


def test_a_group_does_not_end_where_one_pair_is_apart():
    better = np.zeros((3, 3), dtype=bool)
    better[0, 2] = True  # the first beats the last, and the one between beats and is beaten by neither
    assert s.groups_from_relation([3.0, 2.0, 1.0], better) == [1, 1, 1]
    assert s.rank_intervals(better) == [s.RankInterval(1, 2), s.RankInterval(1, 3), s.RankInterval(2, 3)]


def test_rank_intervals_hold_all_true_ranks_together():
    """Six models, three of them equal: all true ranks lie in their intervals in at least 95 % of the sets."""
    effects, held, runs = [0.4, 0.4, 0.4, 0.0, -0.3, -0.3], 0, 300
    for run in range(runs):
        found = s.rank_intervals(s.better_by_items(scores(effects, 60, f"hold {run}")))
        held += all(
            r.best <= sum(e > mine for e in effects) + 1 and r.worst >= sum(e >= mine for e in effects)
            for r, mine in zip(found, effects)
        )
    assert held / runs >= 0.93


def test_bootstrap_ranks_follow_the_spread_of_the_items():
    x = scores([1.5, 0.0, 0.05], 80, "bootstrap")
    found = s.bootstrap_rank_intervals(x, seed=1)
    assert found == [s.RankInterval(1, 1), s.RankInterval(2, 3), s.RankInterval(2, 3)]
    assert found == s.bootstrap_rank_intervals(x, seed=1)
    assert s.bootstrap_rank_intervals(-x, seed=1, higher_is_better=False) == found
    same = np.repeat(x[:, :1], 3, axis=1)
    assert s.bootstrap_rank_intervals(same, seed=1) == [s.RankInterval(1, 1)] * 3


def test_a_difference_that_can_be_resolved_is_found_four_times_in_five():
    planned = s.smallest_resolvable_difference(
        s.mean(scores([0.0], 80, "plan", 1.0)[:, 0] * 0 + numpy_generator(1, "unit").normal(0, 1, 80))
    )
    g, found = numpy_generator(6, "power"), 0
    for _ in range(1500):
        d = g.normal(planned, 1, 80)
        found += s.paired_difference(d, np.zeros(80)).p_value <= 0.05
    assert 0.72 <= found / 1500 <= 0.88  # the plan's own error of the spread is 8 %


def test_smallest_resolvable_difference_in_the_limit_and_at_the_edge():
    e = s.Estimate(0.0, 10**9, 0.01, -0.0196, 0.0196, 0.95, "student-t")
    assert s.smallest_resolvable_difference(e) == pytest.approx(0.01 * (1.959964 + 0.841621), abs=1e-7)
    assert s.smallest_resolvable_difference(e, power=0.5) == pytest.approx(0.0196, abs=1e-5)
    assert s.smallest_resolvable_difference(s.mean([1.0])) is None
    with pytest.raises(ValueError, match="power"):
        s.smallest_resolvable_difference(e, power=1.0)
