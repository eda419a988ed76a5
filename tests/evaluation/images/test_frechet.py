"""Known answers of the Fréchet distance: closed forms, brute force, and the cases where the usual route fails."""

import numpy as np
import pytest
import scipy.linalg

from evaluation.images import frechet
from evaluation.images.frechet import (
    Gaussian,
    compare,
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_from_moments,
)
from evaluation.statistics import Moments
from launch.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


def test_unit_shift_of_the_mean_gives_the_number_of_dimensions():
    eye = np.eye(64)
    assert frechet_distance(np.zeros(64), eye, np.ones(64), eye) == pytest.approx(64.0, abs=1e-9)


def test_scaled_covariances():
    assert frechet_distance(np.zeros(64), 4 * np.eye(64), np.zeros(64), np.eye(64)) == pytest.approx(64.0, abs=1e-9)


def test_one_dimension_has_the_closed_form():
    assert frechet_distance([1.0], [[4.0]], [-2.0], [[0.25]]) == pytest.approx(9.0 + (2.0 - 0.5) ** 2, abs=1e-12)


def test_non_commuting_matrices():
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) in two dimensions; the symmetric solver on S1 @ S2 gets this wrong.
    value = frechet_distance(np.zeros(2), [[2, 1], [1, 2]], np.zeros(2), [[3, -1], [-1, 1]])
    assert value == pytest.approx(1.3972795044568622, abs=1e-12)


def test_sample_covariance_divides_by_n_minus_one():
    constant_images = np.repeat(np.array([0.0, 0.5, 1.0])[:, None], 12, axis=1)
    moments = Moments.of_rows(constant_images)
    assert np.allclose(moments.mean_K, 0.5) and np.allclose(moments.covariance_KK, 0.25)


@pytest.mark.parametrize("samples", [3, 16, 64, 65, 300])
def test_a_set_is_at_distance_zero_from_itself(samples):
    features = rng().standard_normal((samples, 64)) * 100
    for value in (
        frechet_distance_from_features(features, features),
        frechet_distance_from_moments(Moments.of_rows(features), Moments.of_rows(features)),
    ):
        assert 0.0 <= value < 1e-7


@pytest.mark.parametrize("samples", [2, 4, 40, 100, 400])
@pytest.mark.parametrize("dimensions", [1, 2, 32, 100])
def test_features_agree_with_the_matrix_square_root(samples, dimensions):
    a = rng(1).standard_normal((samples, dimensions)) + 0.3
    b = rng(2).standard_normal((samples + 3, dimensions)) @ np.diag(np.linspace(0.5, 2, dimensions))
    s1, s2 = np.cov(a, rowvar=False).reshape(dimensions, -1), np.cov(b, rowvar=False).reshape(dimensions, -1)
    half = np.real(scipy.linalg.sqrtm(s1 + 0j))
    trace = np.sqrt(np.maximum(np.linalg.eigvalsh(half @ s2 @ half.T), 0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * trace
    assert frechet_distance_from_features(a, b) == pytest.approx(expected, rel=1e-5)
    by_moments = frechet_distance_from_moments(Moments.of_rows(a), Moments.of_rows(b))
    assert by_moments == pytest.approx(frechet_distance_from_features(a, b), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("samples", [2, 4, 16, 128, 512])
@pytest.mark.parametrize("dimensions", [2, 4, 16, 128])
def test_the_grid_on_which_eigenvalues_turn_negative(samples, dimensions):
    state = np.random.RandomState(1)  # torch-fidelity's regression: numpy's eigenvalues of S1 S2 go below zero at 4 x 4
    a, b = state.randn(samples, dimensions), state.randn(samples, dimensions)
    value = frechet_distance_from_features(a, b)
    assert isinstance(value, float) and np.isfinite(value) and value > 0


def gaussians(ranks, decay, dimensions=24):
    """Two distributions, of full rank (None: by covariance) or of a lower one (by factor), and the two factors."""
    found = []
    for seed, rank in enumerate(ranks):
        directions = np.linalg.qr(rng(seed).standard_normal((dimensions, dimensions)))[0]
        factor = directions[:, : rank or dimensions] * 10.0 ** -np.linspace(0, decay, rank or dimensions)
        mean = np.zeros(dimensions)
        by_factor = Gaussian(mean, factor=factor)
        found.append((by_factor if rank else Gaussian(mean, factor @ factor.T), factor))
    return found


@pytest.mark.parametrize("ranks", [(None, None), (5, None), (None, 5), (5, 9), (9, 5)])
@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])  # orders of magnitude between the deviations
def test_trace_term_is_the_sum_of_singular_values(ranks, decay):
    (first, f1), (second, f2) = gaussians(ranks, decay)
    expected = np.linalg.svd(f1.T @ f2, compute_uv=False).sum()
    assert compare(first, second).trace == pytest.approx(expected, rel=1e-9)
    assert compare(first, second, axes=True).trace == pytest.approx(expected, rel=1e-9)
    assert first.total_variance == pytest.approx((f1**2).sum())


@pytest.mark.parametrize("ranks", [(None, None), (5, None), (None, 5), (5, 9), (9, 5)])
def test_axes_are_those_of_the_map_between_the_two(ranks):
    (first, f1), (second, f2) = gaussians(ranks, 1.0)
    found = compare(first, second, axes=True)
    outer, inner = (f1, f2) if found.outer is first else (f2, f1)
    product = found.axes.T @ found.outer.factor.T @ inner
    assert np.allclose(product @ product.T, np.diag(found.roots**2), atol=1e-12)
    assert found.outer.width <= found.inner.width and np.allclose(
        outer @ outer.T, found.outer.factor @ found.outer.factor.T
    )


@pytest.mark.parametrize("samples", [9, 60])  # by reflection, and by the triangular factor
@pytest.mark.parametrize("constant", [0, 2])  # and by eigenvectors, where the covariance is singular
def test_coordinates_give_the_images_back(samples, constant):
    rows = np.hstack([rng(4).standard_normal((samples, 10)), np.zeros((samples, constant))])
    side, centred = Gaussian.of_features(rows), rows - rows.mean(axis=0)
    axes = np.linalg.qr(rng(5).standard_normal((side.factor.shape[1],) * 2))[0]
    found = side.coordinates(centred, axes)
    assert np.allclose(found @ axes.T @ side.factor.T, centred)
    assert np.allclose(found.T @ found, (samples - 1) * np.eye(len(axes)))  # of unit covariance


@pytest.mark.parametrize("samples", [2, 3, 20])
def test_few_samples_are_turned_into_one_vector_less(samples, monkeypatch):
    rows = rng().standard_normal((samples, 30))
    factor = Gaussian.of_features(rows).factor
    assert factor.shape == (30, samples - 1) and np.allclose(factor @ factor.T, np.cov(rows, rowvar=False))
    monkeypatch.setattr(frechet.np.linalg, "svd", None)  # so that squaring is good enough
    assert frechet_distance_from_features(rows, rows + 1) == pytest.approx(30.0, rel=1e-9)


def test_squaring_is_left_where_it_would_cost_digits(monkeypatch):
    calls = []
    plain = np.linalg.svd
    monkeypatch.setattr(frechet.np.linalg, "svd", lambda *a, **k: calls.append(1) or plain(*a, **k))
    (first, _), (second, _) = gaussians((None, None), 1.0)
    compare(first, second)
    assert not calls
    (first, f1), (second, f2) = gaussians((20, 20), 6.0)  # the square has eigenvalues down to 1e-24, below its rounding
    assert compare(first, second).trace == pytest.approx(plain(f1.T @ f2, compute_uv=False).sum(), rel=1e-12)
    assert calls


def test_constant_dimensions_do_no_harm():
    a, b = rng(1).standard_normal((200, 8)), rng(2).standard_normal((200, 8))
    padded = [np.hstack([x, np.zeros((200, 3))]) for x in (a, b)]
    assert frechet_distance_from_features(*padded) == pytest.approx(frechet_distance_from_features(a, b), rel=1e-9)
    assert frechet_distance_from_features(np.zeros((9, 4)), np.ones((9, 4))) == pytest.approx(4.0)


def test_symmetric_and_invariant_under_rotation():
    a, b = rng(1).standard_normal((90, 12)), rng(2).standard_normal((70, 12)) * 2
    rotation = np.linalg.qr(rng(3).standard_normal((12, 12)))[0]
    value = frechet_distance_from_features(a, b)
    assert frechet_distance_from_features(b, a) == pytest.approx(value, rel=1e-12)
    assert frechet_distance_from_features(a @ rotation, b @ rotation) == pytest.approx(value, rel=1e-10)


def test_bias_falls_as_one_over_n():
    # Both sets from N(0, I_d): N E[FD] -> 2d + d(d+1)/2, which is why N is part of a score's name.
    d, n = 16, 1000
    values = [frechet_distance_from_features(*np.split(rng(i).standard_normal((2 * n, d)), 2)) for i in range(20)]
    assert n * np.mean(values) == pytest.approx(2 * d + d * (d + 1) / 2, rel=0.06)


def test_bad_input_is_named():
    good = rng().standard_normal((5, 3))
    with pytest.raises(UserError, match="row 2 holds NaN"):
        frechet_distance_from_features(np.where(np.arange(5)[:, None] == 2, np.nan, good), good)
    with pytest.raises(UserError, match="has 1 images"):
        frechet_distance_from_features(good[:1], good)
    with pytest.raises(UserError, match="3 and 2 dimensions"):
        frechet_distance_from_features(good, good[:, :2])
    with pytest.raises(UserError, match="must be a matrix"):
        frechet_distance_from_features(good[0], good)
    with pytest.raises(UserError, match="at least two images; there are 0"):
        Gaussian.of_moments(Moments.of_rows(np.zeros((0, 3))))
    with pytest.raises(UserError, match="covariance2 has shape"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), np.eye(2))
