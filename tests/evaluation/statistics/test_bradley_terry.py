"""Bradley-Terry: closed forms, the undefeated, the disconnected, and invariances."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import expit

from evaluation import statistics as s
from launch.errors import UserError
from launch.seeding import numpy_generator

KNOWN = [[0, 2, 4], [1, 0, 2], [1, 1, 0]]


def duels(wins, names="abc"):
    """Rows of a matrix of wins, in a mixed order."""
    rows = [
        (names[i], names[j], 1.0) for i, j in itertools.permutations(range(len(wins)), 2) for _ in range(wins[i][j])
    ]
    return [rows[k] for k in numpy_generator(0, "order").permutation(len(rows))]


def test_maximum_likelihood_gives_four_two_one():
    found = s.fit_win_matrix(KNOWN, penalty="none")
    assert np.exp(found.strengths_M - found.strengths_M[2]) == pytest.approx([4, 2, 1], abs=1e-8)
    by_rows = s.fit_bradley_terry(*zip(*duels(KNOWN)), penalty="none")
    strengths = [by_rows.strengths()[name].value for name in "abc"]
    assert strengths == pytest.approx(found.strengths_M.tolist(), abs=1e-8)
    assert sum(strengths) == pytest.approx(0.0, abs=1e-12)


def test_the_order_of_duels_models_and_sides_does_not_matter():
    rows = duels([[0, 5, 9], [2, 0, 4], [1, 3, 0]])
    one = s.fit_bradley_terry(*zip(*rows)).elo()
    swapped = [(b, a, 1 - y) if k % 2 else (a, b, y) for k, (a, b, y) in enumerate(reversed(rows))]
    two = s.fit_bradley_terry(*zip(*swapped)).elo()
    for name in "abc":
        assert two[name].value == pytest.approx(one[name].value, abs=1e-6)
        assert two[name].low == pytest.approx(one[name].low, abs=1e-6)


def test_two_models_have_the_closed_form_of_firth():
    found = s.fit_bradley_terry(["a"] * 20, ["b"] * 20, [1.0] * 15 + [0.0] * 5)
    difference = found.difference("a", "b").estimate
    assert difference.value == pytest.approx(math.log(15.5 / 5.5))
    p = 15.5 / 21
    assert difference.stderr == pytest.approx(1 / math.sqrt(20 * p * (1 - p)))
    assert found.win_probability("a", "b").value == pytest.approx(p)


def test_elo_scale():
    found = s.fit_win_matrix([[0, 30], [10, 0]], penalty="none")
    elo = found.elo()
    assert elo["0"].value - elo["1"].value == pytest.approx(190.8485, abs=1e-4) == s.elo_difference(0.75)
    assert elo["0"].value + elo["1"].value == pytest.approx(2000)
    assert s.elo_difference(0.64) == pytest.approx(99.951, abs=1e-3) and s.elo_probability(400) == pytest.approx(
        10 / 11
    )
    with pytest.raises(ValueError, match="not between 0 and 1"):
        s.elo_difference(1.0)


def test_an_undefeated_model_is_finite_and_its_interval_wide():
    rows = duels([[0, 10, 10], [0, 0, 5], [0, 5, 0]])
    found = s.fit_bradley_terry(*zip(*rows))
    best, other = found.strengths()["a"], found.strengths()["b"]
    assert 1.5 < best.value < 4 and best.low > other.value
    assert best.high - best.low > 1.5 * (other.high - other.low)
    with pytest.raises(UserError, match=r"won or lost every duel.*use the penalty 'firth'"):
        s.fit_bradley_terry(*zip(*rows), penalty="none")


def test_a_disconnected_graph_is_refused_in_one_sentence():
    with pytest.raises(UserError, match=r"2 parts that never met, \[a, b\]\[c, d\]") as found:
        s.fit_bradley_terry(["a", "c", "a"], ["b", "d", "b"], [1, 0, 0.5])
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match="one model"):
        s.fit_win_matrix([[0.0]])


def test_the_penalty_vanishes_beside_many_duels():
    wins = np.array(KNOWN) * 2000
    firth, plain = s.fit_win_matrix(wins), s.fit_win_matrix(wins, penalty="none")
    assert firth.strengths_M == pytest.approx(plain.strengths_M, abs=2e-3)


def test_covariance_is_the_inverse_information_of_the_likelihood():
    found = s.fit_win_matrix(np.array(KNOWN) * 10, penalty="none")
    total = np.array(KNOWN) * 10 + (np.array(KNOWN) * 10).T
    p = expit(found.strengths_M[:, None] - found.strengths_M[None])
    weight = total * p * (1 - p)
    laplacian = np.diag(weight.sum(1)) - weight
    assert found.covariance_MM == pytest.approx(np.linalg.pinv(laplacian), abs=1e-9)


def test_ties_narrow_the_interval_and_copies_do_not():
    i, j = zip(*[pair for pair in itertools.combinations("abc", 2) for _ in range(40)])
    y = numpy_generator(3, "ties").integers(0, 2, 120).astype(float)
    ties = np.where(np.arange(120) % 2, 0.5, y)
    width = {k: e.high - e.low for k, e in s.fit_bradley_terry(i, j, y).strengths().items()}
    with_ties = s.fit_bradley_terry(i, j, ties).strengths()
    assert all(e.high - e.low < 0.85 * width[k] for k, e in with_ties.items())
    copied = s.fit_bradley_terry(i * 4, j * 4, np.tile(y, 4), clusters=list(range(120)) * 4)
    for name, estimate in copied.strengths().items():
        assert estimate.high - estimate.low == pytest.approx(width[name], rel=0.12)
        assert estimate.n == 80 and "sandwich" in estimate.method


def test_clusters_never_shrink_the_error_of_an_undefeated_model():
    i, j = ["a"] * 60 + ["b"] * 60, ["b"] * 60 + ["c"] * 60
    y = [1.0] * 60 + numpy_generator(4, "undefeated").integers(0, 2, 60).astype(float).tolist()
    plain = s.fit_bradley_terry(i, j, y).difference("a", "b").estimate
    clustered = s.fit_bradley_terry(i, j, y, clusters=[k // 2 for k in range(120)]).difference("a", "b").estimate
    assert clustered.stderr >= plain.stderr - 1e-9
    with pytest.raises(UserError, match="2 clusters of duels for 3 models are too few"):
        s.fit_bradley_terry(i, j, y, clusters=[k // 60 for k in range(120)])


def test_differences_and_ranks_use_the_covariance():
    found = s.fit_bradley_terry(*zip(*duels([[0, 40, 45], [10, 0, 26], [5, 24, 0]])))
    a_b, b_c = found.difference("a", "b"), found.difference("b", "c")
    assert a_b.p_value < 1e-4 < 0.05 < b_c.p_value
    assert found.difference("b", "a").estimate.value == -a_b.estimate.value
    better = found.better()
    names = found.names
    ranks = dict(zip(names, s.rank_intervals(better)))
    assert ranks["a"] == s.RankInterval(1, 1) and ranks["b"] == ranks["c"] == s.RankInterval(2, 3)
    groups = dict(zip(names, s.groups_from_relation(found.strengths_M, better)))
    assert groups == {"a": 1, "b": 2, "c": 2}


def test_bad_duels_are_named():
    with pytest.raises(ValueError, match="one outcome"):
        s.fit_bradley_terry(["a"], ["b"], [0.3])
    with pytest.raises(ValueError, match="does not meet itself"):
        s.fit_bradley_terry(["a"], ["a"], [1])
    with pytest.raises(ValueError, match="empty diagonal"):
        s.fit_win_matrix([[1, 1], [1, 0]])
