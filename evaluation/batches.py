"""Rows in batches: sorted by length and cut where padding costs least. Pure.

Every forward pass over rows of unlike length is planned here: scoring, evaluation, and PPO's micro-batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

PASS_TOKENS = 256
"""What a forward pass costs besides its tokens, in tokens: as much padding may be saved by one more pass before it pays."""


def plan_batches(
    lengths: Sequence[int], budget: int, costs: Sequence[int] | None = None, cap: int = 0
) -> list[list[int]]:
    """Row numbers in batches, longest first, cut by `cut_rows`."""
    return cut_rows(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)), lengths, budget, costs, cap)


def cut_rows(
    ordered: Sequence[int],
    lengths: Sequence[int],
    budget: int,
    costs: Sequence[int] | None = None,
    cap: int = 0,
) -> list[list[int]]:
    """Rows, longest first, in the batches that have the fewest padded tokens and PASS_TOKENS in all; the fewest of equals.

    A batch's padded size (rows x longest) stays within `budget` and its summed `costs` within `cap`, but every batch
    has at least one row. `lengths` and `costs` are by row number. Dynamic programming over where the last batch begins,
    which is exact: some best plan is made of neighbours, since rows are sorted. Linear in rows times rows of a batch.
    """
    n = len(ordered)
    sizes = [lengths[row] for row in ordered]
    spent = np.cumsum([0, *(costs[row] if costs else 0 for row in ordered)]).tolist()
    # One number for both: tokens times (n + 1), plus the number of batches, which is at most n.
    padded_N = np.array(sizes, dtype=np.int64) * (n + 1)
    before_N = padded_N * np.arange(n)
    best_N = np.zeros(n + 1, dtype=np.int64)
    begins = [0]
    first = 0
    for stop in range(1, n + 1):
        while first < stop - 1 and (
            sizes[first] * (stop - first) > budget or (costs and spent[stop] - spent[first] > cap)
        ):
            first += 1
        choices = best_N[first:stop] + padded_N[first:stop] * stop - before_N[first:stop]
        start = first + int(choices.argmin())
        best_N[stop] = choices[start - first] + PASS_TOKENS * (n + 1) + 1
        begins.append(start)
    batches: list[list[int]] = []
    stop = n
    while stop:
        batches.append(list(ordered[begins[stop] : stop]))
        stop = begins[stop]
    return batches[::-1]


def equal_slices(count: int, most: int) -> list[slice]:
    """As few slices of 0..count as have at most `most` items each (at least one), of about equal size."""
    parts = -(-count // max(1, most))
    bounds = [count * i // parts for i in range(parts + 1)] if parts else []
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
