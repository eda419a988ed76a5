"""MIND against its formula, a closed form, an optimal transport by linear assignment, and leaving blocks out."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from evaluation.images import sliced
from evaluation.images.frechet import frechet_distance_from_features
from evaluation.images.sliced import mind, random_directions, sliced_distance
from launch.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


def no_blocks(*counts):
    return [np.zeros(count, dtype=np.int64) for count in counts]


def test_equals_the_formula_for_sets_of_one_size():
    x, y = rng(1).standard_normal((40, 6)), rng(2).standard_normal((40, 6)) * 1.3 + 0.2
    directions = random_directions(6, 0, 50)
    expected = 3 * 6 * np.mean([np.mean((np.sort(x @ u) - np.sort(y @ u)) ** 2) for u in directions])
    assert mind(x, y, 0, 50) == pytest.approx(expected, rel=1e-12)
    assert np.linalg.norm(directions, axis=1) == pytest.approx(np.ones(50))


def test_sorting_is_the_optimal_coupling():
    x, y = rng(1).standard_normal((15, 3)), rng(2).standard_normal((15, 3)) + 0.4
    u = random_directions(3, 0, 1)
    cost = ((x @ u.T) - (y @ u.T).T) ** 2
    best = cost[linear_sum_assignment(cost)].mean()
    assert sliced_distance(x, y, u, *no_blocks(15, 15)).value == pytest.approx(9 * best, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(12, 18), (7, 5), (10, 1)])
def test_sets_of_different_sizes_use_every_sample(n, m):
    # repeated to their least common multiple both have one size, and the same distributions
    x, y = rng(n).standard_normal((n, 4)), rng(m).standard_normal((m, 4)) + 0.3
    common = np.lcm(n, m)
    repeated = mind(np.repeat(x, common // n, axis=0), np.repeat(y, common // m, axis=0), 0, 30)
    assert mind(x, y, 0, 30) == pytest.approx(repeated, rel=1e-12)


def test_shift_of_every_coordinate_has_the_closed_form():
    # u . (mu, ..., mu) squared has mean mu^2, so the distance tends to 3 d mu^2
    x, d, mu = rng(1).standard_normal((200, 20)), 20, 0.7
    assert mind(x, x + mu, 0, 4000) == pytest.approx(3 * d * mu**2, rel=0.05)
    assert mind(x, x) == 0.0


def test_sees_what_the_frechet_distance_is_blind_to():
    d, n = 16, 4000
    signs, normal = rng(1).choice([-1.0, 1.0], (n, d)), rng(2).standard_normal((n, d))
    other = rng(3).standard_normal((n, d))
    assert frechet_distance_from_features(signs, normal) < 1.5 * frechet_distance_from_features(other, normal)
    assert mind(signs, normal, 0, 300) > 1.8 * mind(other, normal, 0, 300)


def test_symmetric_and_in_chunks_the_same(monkeypatch):
    x, y = rng(1).standard_normal((30, 5)), rng(2).standard_normal((44, 5)) + 0.2
    whole = mind(x, y, 0, 64)
    assert mind(y, x, 0, 64) == pytest.approx(whole, rel=1e-12)
    monkeypatch.setattr(sliced, "CHUNK_CELLS", 500)
    assert mind(x, y, 0, 64) == pytest.approx(whole, rel=1e-12)


def test_invariant_under_rotation_up_to_the_choice_of_directions():
    x, y = rng(1).standard_normal((200, 5)), rng(2).standard_normal((200, 5)) * 1.5
    rotation = np.linalg.qr(rng(3).standard_normal((5, 5)))[0]
    assert mind(x @ rotation, y @ rotation, 0, 4000) == pytest.approx(mind(x, y, 0, 4000), rel=0.05)


def test_without_each_block():
    x, y = rng(1).standard_normal((30, 4)), rng(2).standard_normal((24, 4)) + 0.2
    blocks_x, blocks_y = rng(3).permutation(30) % 5, rng(4).permutation(24) % 4
    directions = random_directions(4, 0, 20)
    found = sliced_distance(x, y, directions, blocks_x, blocks_y)
    for b in range(5):
        again = sliced_distance(x[blocks_x != b], y, directions, *no_blocks(24, 24))
        assert found.without_generated[b] == pytest.approx(again.value, rel=1e-12)
    for b in range(4):
        again = sliced_distance(x, y[blocks_y != b], directions, *no_blocks(30, 18))
        assert found.without_real[b] == pytest.approx(again.value, rel=1e-12)


def test_bad_input_is_named():
    good = rng().standard_normal((5, 3))
    with pytest.raises(UserError, match="3 and 2 dimensions"):
        mind(good, good[:, :2])
    with pytest.raises(UserError, match="there are 5 and 0"):
        mind(good, good[:0])
    with pytest.raises(UserError, match="holds NaN"):
        mind(good, good * np.nan)
