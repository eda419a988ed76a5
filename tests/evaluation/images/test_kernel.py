"""Known answers of the kernel distances, and their variance against brute force and fresh samples."""

import itertools

import numpy as np
import pytest
import torch

from evaluation.images import kernel
from evaluation.images.kernel import cmmd, kernel_distance, polynomial_kernel, unit_length, variance_parts
from launch.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


def test_kernel_distance_of_points_is_exact():
    zero, one = np.zeros((8, 16)), np.ones((5, 16))
    assert kernel_distance(zero, one).value == pytest.approx(7.0, abs=1e-12)
    assert kernel_distance(np.full((8, 16), 0.5), zero).value == pytest.approx(1.25**3 - 1, abs=1e-12)
    assert kernel_distance(zero, zero).value == 0.0


def test_kernel_distance_of_a_set_with_itself_is_negative_and_not_clamped():
    x = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)).double().numpy()
    matrix = (x @ x.T / 16 + 1) ** 3
    off_diagonal = matrix.sum() - np.trace(matrix)
    expected = 2 * off_diagonal / (1000 * 999) - 2 * matrix.sum() / 1000**2
    assert kernel_distance(x, x).value == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(-0.0154979, abs=1e-7)


def test_kernel_distance_in_chunks_equals_one_matrix(monkeypatch):
    x, y = rng(1).standard_normal((60, 6)), rng(2).standard_normal((45, 6)) + 0.2
    whole = kernel_distance(x, y)
    monkeypatch.setattr(kernel, "CHUNK", 7)
    parts = kernel_distance(x, y)
    assert (parts.value, parts.standard_error) == pytest.approx((whole.value, whole.standard_error), rel=1e-10)


def variance_by_enumeration(kxx, kyy, kxy):
    """The unbiased variance by its definition: every moment a mean over all tuples of different samples."""
    n, m = kxy.shape
    x, y = range(n), range(m)

    def moments(k, cross, others):
        of = itertools.permutations
        size = range(len(k))
        mean2 = np.mean([k[a, b] * k[c, d] for a, b, c, d in of(size, 4)])
        rows = np.mean([k[a, b] * k[a, c] for a, b, c in of(size, 3)]) - mean2
        pairs = np.mean([k[a, b] ** 2 for a, b in of(size, 2)]) - mean2
        joint = np.mean([k[a, b] * cross[a, c] for a, b in of(size, 2) for c in others])
        apart = np.mean([k[a, b] * cross[d, c] for a, b, d in of(size, 3) for c in others])
        return rows, pairs, joint - apart

    own_x, whole_x, cross_x = moments(kxx, kxy, y)
    own_y, whole_y, cross_y = moments(kyy, kxy.T, x)
    pairs_x, pairs_y = list(itertools.permutations(x, 2)), list(itertools.permutations(y, 2))
    apart = np.mean([kxy[a, c] * kxy[b, d] for a, b in pairs_x for c, d in pairs_y])
    of_x = np.mean([kxy[a, c] * kxy[a, d] for a in x for c, d in pairs_y]) - apart
    of_y = np.mean([kxy[a, c] * kxy[b, c] for a, b in pairs_x for c in y]) - apart
    of_both = np.mean(kxy**2) - apart
    first = 4 / n * (own_x + of_x - 2 * cross_x) + 4 / m * (own_y + of_y - 2 * cross_y)
    second = 2 / (n * (n - 1)) * (whole_x - 2 * own_x) + 2 / (m * (m - 1)) * (whole_y - 2 * own_y)
    second += 4 / (n * m) * (of_both - of_x - of_y)
    return first, second


@pytest.mark.parametrize("seed", range(4))
def test_variance_equals_the_mean_over_tuples_of_different_samples(seed):
    x, y = rng(seed).standard_normal((6, 3)) + seed, rng(90 + seed).standard_normal((5, 3))
    sums = [kernel._self_sums(polynomial_kernel, s, 0.7)[0] for s in (x, y)]
    found = variance_parts(*sums, kernel._sums(polynomial_kernel, x, y, 0.7))
    matrices = [polynomial_kernel(a, b) - 0.7 for a, b in ((x, x), (y, y), (x, y))]
    assert found == pytest.approx(variance_by_enumeration(*matrices), rel=1e-9)


@pytest.mark.parametrize(("shift", "most"), [(0.0, 1.4), (0.5, 1.15)])  # equal: the second part is all there is
@pytest.mark.parametrize("distance", [kernel_distance, cmmd])
def test_standard_error_is_the_spread_over_fresh_samples(shift, most, distance):
    draws = [
        distance(rng(i).standard_normal((60, 4)), rng(5000 + i).standard_normal((90, 4)) + shift) for i in range(400)
    ]
    error, spread = np.sqrt(np.mean([d.standard_error**2 for d in draws])), np.std([d.value for d in draws])
    assert 0.87 * spread < error < most * spread


def test_the_variance_is_unbiased_where_it_is_smallest():
    estimates, values = [], []
    for i in range(1500):
        x, y = rng(i).standard_normal((14, 3)), rng(5000 + i).standard_normal((11, 3))
        sums = [kernel._self_sums(polynomial_kernel, s, 1.0)[0] for s in (x, y)]
        estimates.append(sum(variance_parts(*sums, kernel._sums(polynomial_kernel, x, y, 1.0))))
        values.append(kernel_distance(x, y).value)
    assert np.mean(estimates) == pytest.approx(np.var(values), rel=0.2)


def test_kernel_distance_is_unbiased():
    draws = [
        kernel_distance(rng(i).standard_normal((12, 3)), rng(7000 + i).standard_normal((9, 3))) for i in range(1500)
    ]
    values = np.array([d.value for d in draws])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values)) and (values < 0).mean() > 0.3


def test_cmmd_of_points_is_exact():
    for distance in (0.5, 10.0, 60.0):
        points = np.zeros((6, 3)), np.repeat([[distance, 0.0, 0.0]], 9, axis=0)
        assert cmmd(*points).value == pytest.approx(2000 * (1 - np.exp(-(distance**2) / 200)), rel=1e-12)
    x = rng().standard_normal((40, 8))
    assert cmmd(x, x).value == pytest.approx(0.0, abs=1e-10)


def test_cmmd_equals_brute_force():
    x, y = unit_length(rng(1).standard_normal((30, 5))), unit_length(rng(2).standard_normal((20, 5)) + 1)

    def mean_kernel(a, b):
        return np.mean([[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a])

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert cmmd(x, y).value == pytest.approx(expected, rel=1e-8)
    assert np.linalg.norm(x, axis=1) == pytest.approx(np.ones(30))


def test_constant_features_have_a_finite_distance():
    assert kernel_distance(np.ones((5, 3)), np.ones((7, 3))).value == 0.0
    assert kernel_distance(np.ones((5, 3)), np.zeros((7, 3))).standard_error == 0.0


def test_bad_input_is_named():
    two, good = np.zeros((2, 4)), rng().standard_normal((9, 4))
    for distance in (kernel_distance, cmmd):
        with pytest.raises(UserError, match="at least 4 images in each set; there are 2 and 2"):
            distance(two, two)
        with pytest.raises(UserError, match="the real set: row 3 holds NaN"):
            distance(good, np.where(np.arange(9)[:, None] == 3, np.nan, good))
        with pytest.raises(UserError, match="4 and 3 dimensions"):
            distance(good, good[:, :3])
    assert unit_length([[3.0, 4.0], [0.0, 0.0]]).tolist() == [[0.6, 0.8], [0.0, 0.0]]
