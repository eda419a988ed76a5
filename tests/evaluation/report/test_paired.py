"""Paired differences of a leaderboard's entries, and the ranks that they leave open."""

import itertools

import numpy as np
import pytest

from evaluation.report.items import Items
from evaluation.report.leaderboard import Leaderboard
from evaluation.report.paired import against, compare_pairs, default_baseline
from evaluation.report.views import first_by_pairs
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject
from evaluation.statistics import better_by_items, holm, mean, paired_difference, rank_intervals

PROTOCOL = Protocol(dataset="prompts", dataset_sha256="a" * 64, n_items=200)


def board_of(scores, better=True):
    """A leaderboard of entries with these scores, and the scores as items."""
    results = []
    for name, values in scores.items():
        e = mean(values)
        entry = Metric("x", e.value, e.n, e.low, e.high, ci_method=e.method, higher_is_better=better)
        results.append(EvaluationResult("s", Subject(name, "language model"), PROTOCOL, [entry]))
    board = Leaderboard(results)
    items = {
        name: Items({(str(i), 0): float(v) for i, v in enumerate(values)}, {(str(i), 0): str(i) for i in range(len(values))})
        for name, values in scores.items()
    }  # fmt: skip
    return board, {board.columns[0].key: items}


def close_models(n=200):
    """Three models that differ little on items that differ much: their intervals overlap, their differences are sure."""
    draw = np.random.default_rng(0)
    hard = draw.normal(0, 3, n)
    return {name: hard + shift + draw.normal(0, 0.1, n) for name, shift in (("a", 0.3), ("b", 0.15), ("c", 0.0))}


def test_pairs_see_what_overlapping_intervals_hide():
    scores = close_models()
    board, items = board_of(scores)
    cells = {row.name: next(iter(row.cells.values())) for row in board.rows}
    assert {c.rank for c in cells.values()} == {1} and {(c.ranks.best, c.ranks.worst) for c in cells.values()} == {
        (1, 3)
    }
    paired = compare_pairs(board, items)
    ranks = {name: paired.ranks(board.columns[0].key, name) for name in "abc"}
    assert {n: (r.best, r.worst) for n, r in ranks.items()} == {"a": (1, 1), "b": (2, 2), "c": (3, 3)}
    direct = rank_intervals(better_by_items(np.stack([scores[n] for n in "abc"], axis=1)))
    assert [ranks[n] for n in "abc"] == direct


@pytest.mark.parametrize("better", [True, False])
def test_differences_from_a_baseline(better):
    scores = close_models()
    board, items = board_of(scores, better)
    rows = {r.name: r for r in against(compare_pairs(board, items), "b")}
    assert set(rows) == {"a", "c"}
    for name, row in rows.items():
        direct = paired_difference(scores[name], scores["b"])
        assert row.difference.estimate.value == pytest.approx(direct.estimate.value, abs=1e-12)
        assert row.difference.estimate.low == pytest.approx(direct.estimate.low, abs=1e-12)
    assert rows["a"].verdict == ("better" if better else "worse") and rows["c"].verdict == (
        "worse" if better else "better"
    )


def test_p_values_are_corrected_over_the_table():
    draw = np.random.default_rng(4)
    base = draw.normal(size=60)
    scores = {"base": base} | {n: base + draw.normal(s, 0.5, 60) for n, s in (("a", 0.16), ("b", 0.13), ("c", 0.0))}
    board, items = board_of(scores)
    raw = {n: paired_difference(scores[n], base).p_value for n in "abc"}
    found = {r.name: r.corrected for r in against(compare_pairs(board, items), "base")}
    assert min(raw.values()) > 1e-6
    assert found == dict(zip("abc", holm(list(raw.values()))))
    assert all(found[n] > raw[n] or found[n] == 1 or n == max(raw, key=raw.get) for n in "abc")


def test_every_pair_is_mirrored():
    board, items = board_of(close_models())
    (column,) = compare_pairs(board, items).columns
    for a, b in itertools.permutations("abc", 2):
        one, two = column.differences[a, b].estimate, column.differences[b, a].estimate
        assert (one.value, one.low, one.high) == (-two.value, -two.high, -two.low)


def test_other_items_are_not_paired():
    board, items = board_of(close_models())
    (column,) = items.values()
    column["c"] = Items({("other", 0): 1.0}, {("other", 0): "other"})
    (found,) = compare_pairs(board, items).columns
    assert found.names == ["a", "b"]
    del column["b"]
    assert compare_pairs(board, items).columns == []


def test_equal_models_are_not_told_apart():
    values = np.random.default_rng(1).normal(size=50)
    board, items = board_of({"a": values, "b": values})
    (row,) = against(compare_pairs(board, items), "a")
    assert row.verdict == "not told apart" and row.corrected == 1.0


def test_which_baseline_comes_first():
    board, items = board_of(close_models())
    paired = compare_pairs(board, items)
    known = [Metric("x", 1.0, 9, baseline="b")]
    assert default_baseline(paired, "c", known) == "c"
    assert default_baseline(paired, "absent", known) == "b"
    assert default_baseline(paired, "", []) == "c"


def test_the_sentence_says_who_is_first_by_pairs():
    board, items = board_of(close_models())
    paired = compare_pairs(board, items)
    assert first_by_pairs(board, paired) == "Paired tests on the same items put a first."
    values = np.random.default_rng(1).normal(size=50)
    equal, items = board_of({"a": values, "b": values})
    assert first_by_pairs(equal, compare_pairs(equal, items)) == "" == first_by_pairs(board, None)
