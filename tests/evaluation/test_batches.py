"""Batches against brute force: every way to cut the sorted rows."""

from hypothesis import given
from hypothesis import strategies as st

from evaluation.batches import PASS_TOKENS, cut_rows, plan_batches


def cheapest(rows, lengths, costs, budget, cap):
    """The least (padded tokens and PASS_TOKENS, batches) of all cuts into batches that fit."""
    if not rows:
        return 0, 0
    found = []
    for first in range(1, len(rows) + 1):
        padded, spent = lengths[rows[0]] * first, sum(costs[row] for row in rows[:first])
        if first == 1 or (padded <= budget and spent <= cap):
            rest, count = cheapest(rows[first:], lengths, costs, budget, cap)
            found.append((padded + PASS_TOKENS + rest, count + 1))
    return min(found)


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 5)), min_size=1, max_size=8),
    st.integers(1, 900),
    st.integers(0, 12),
)
def test_batches_are_the_cheapest_of_all_cuts(rows, budget, cap):
    lengths, costs = [length for length, _ in rows], [cost for _, cost in rows]
    batches = plan_batches(lengths, budget, costs, cap)
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(rows)))
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or lengths[batch[0]] * len(batch) <= budget
        assert len(batch) == 1 or sum(costs[row] for row in batch) <= cap
    cost = sum(lengths[batch[0]] * len(batch) + PASS_TOKENS for batch in batches)
    assert (cost, len(batches)) == cheapest(order, lengths, costs, budget, cap)


def test_without_costs_the_budget_alone_decides():
    assert plan_batches([3, 40, 8, 1, 4, 60, 2], 64) == [[5], [1], [2, 4, 0, 6, 3]]
    assert [len(batch) for batch in plan_batches([4] * 6, 1000, costs=[3] * 6, cap=6)] == [2, 2, 2]
    assert plan_batches([], 64) == []


def test_a_short_row_does_not_pay_for_a_long_one():
    assert plan_batches([5000, 10, 10], 10**6) == [[0], [1, 2]]
    assert plan_batches([100, 90], 10**6) == [[0, 1]]


def test_some_rows_of_many():
    assert cut_rows([3, 1], [5, 3, 100, 9], 100) == [[3, 1]]
