"""The extrapolated Fréchet distance: the law of the bias, and that both sets have to shrink."""

import numpy as np
import pytest

from evaluation.images.extrapolation import (
    extrapolate_frechet,
    halving_ids,
    jackknife_extrapolation,
)
from evaluation.images.frechet import frechet_distance_from_features
from launch.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


def both(seed, n, d, shift=0.0):
    return rng(seed).standard_normal((n, d)) + shift, rng(9000 + seed).standard_normal((n, d))


def test_the_bias_of_equal_sets_vanishes():
    # N E[FD] -> 2d + d(d+1)/2 in d dimensions: 552 for d = 32
    d, n = 32, 2000
    found = [extrapolate_frechet(*both(seed, n, d), seed) for seed in range(6)]
    plain, infinite = np.mean([f.at_n for f in found]), np.mean([f.at_infinity for f in found])
    assert plain * n == pytest.approx(2 * d + d * (d + 1) / 2, rel=0.06)
    assert abs(infinite) < 0.08 * plain
    assert abs(np.mean([f.curvature for f in found])) < 0.1


def test_shrinking_the_generated_set_alone_would_keep_half_of_the_bias():
    d, n = 32, 2000
    kept = []
    for seed in range(4):
        x, y = both(seed, n, d)
        halves = np.mean([frechet_distance_from_features(half, y) for half in np.split(x, 2)])
        whole = frechet_distance_from_features(x, y)
        kept.append((2 * whole - halves) / whole)
    assert np.mean(kept) == pytest.approx(0.5, abs=0.1)


def test_a_true_distance_is_found():
    d, shift = 16, 0.5
    found = [extrapolate_frechet(*both(seed, 1000, d, shift), seed) for seed in range(8)]
    truth = d * shift**2
    assert np.mean([f.at_n for f in found]) > truth + 0.1
    assert np.mean([f.at_infinity for f in found]) == pytest.approx(truth, abs=0.12)


def test_few_images_for_the_dimensions_show_in_the_curvature():
    assert abs(extrapolate_frechet(*both(0, 60, 64), 0).curvature) > 0.1


@pytest.mark.parametrize(("n", "d"), [(200, 8), (60, 40)])  # moments of blocks are merged, or rows put together
@pytest.mark.parametrize("blocks", [4, 6])
def test_jackknife_equals_leaving_each_block_out(n, d, blocks):
    x, y = both(1, n, d, 0.3)
    found, left_out = jackknife_extrapolation(x, y, blocks, 0)
    ids = [halving_ids(rows, blocks, 0, which) for which, rows in enumerate((x, y))]

    def mean_of(count, lost=(-1, -1)):
        """The mean distance of `count` parts, each set less one block."""
        kept = [np.where(ids[k] == lost[k], -1, ids[k] % count) for k in (0, 1)]
        return np.mean([frechet_distance_from_features(x[kept[0] == p], y[kept[1] == p]) for p in range(count)])

    def distance(*lost):
        return 2 * mean_of(1, lost) - mean_of(2, lost)

    assert (found.at_n, found.at_infinity) == pytest.approx((mean_of(1), distance(-1, -1)), rel=1e-8)
    assert left_out[0] == pytest.approx([distance(b, -1) for b in range(blocks)], rel=1e-8)
    assert left_out[1] == pytest.approx([distance(-1, b) for b in range(blocks)], rel=1e-8)
    place = {4: (2 + 4 + 4) / 3, 6: 3}[blocks]  # four blocks make thirds of two, one and one
    line = found.at_n + (place - 1) * (found.at_n - found.at_infinity)
    rise = line - found.at_n
    assert found.curvature == pytest.approx((mean_of(3) - line) / rise, rel=1e-6, abs=1e-9)


def test_thirds_lie_on_the_line_also_where_they_are_unequal():
    found = [jackknife_extrapolation(*both(seed, 2000, 16), 10, seed)[0].curvature for seed in range(4)]
    assert abs(np.mean(found)) < 0.05


def test_bad_input_is_named():
    with pytest.raises(UserError, match="at least 6 images in each set; there are 5 and 9"):
        extrapolate_frechet(np.zeros((5, 2)), np.zeros((9, 2)))
