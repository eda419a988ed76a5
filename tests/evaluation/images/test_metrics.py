"""Known answers of the Inception Score, the kernel distance and the manifold metrics."""

import numpy as np
import pytest
import torch

from evaluation.images import metrics
from evaluation.images.metrics import inception_score, kernel_distance, precision_recall_density_coverage
from launch.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


def one_hot_logits(labels, classes=10):
    return np.where(np.arange(classes)[None] == np.asarray(labels)[:, None], 1000.0, 0.0)


def test_inception_score_of_constant_logits_is_one():
    assert inception_score(np.full((50, 7), 3.0)) == pytest.approx([1.0], abs=1e-12)


def test_inception_score_of_balanced_certain_classes_is_the_number_of_classes():
    assert inception_score(one_hot_logits(np.arange(100) % 10)) == pytest.approx([10.0], abs=1e-9)


def test_inception_score_known_value():
    p = np.full((10, 10), 0.1 / 9)
    np.fill_diagonal(p, 0.9)
    assert inception_score(np.log(np.tile(p, (5, 1)))) == pytest.approx([5.79954613], abs=1e-8)


def test_inception_score_depends_on_the_order_when_split():
    labels = np.repeat(np.arange(10), 100)
    assert inception_score(one_hot_logits(labels), splits=10) == pytest.approx(np.ones(10))
    order = metrics.shuffled(1000, seed=0)
    assert sorted(order) == list(range(1000))
    split = inception_score(one_hot_logits(labels[order]), splits=10)
    assert 9.2 < split.mean() < 9.8  # not 10: each split of 100 is unbalanced by chance


def test_inception_score_survives_logits_that_overflow_a_float32_exponential():
    assert np.isfinite(inception_score(rng().standard_normal((30, 5)) * 1e4)).all()


def test_kernel_distance_of_points_is_exact():
    zero, one = np.zeros((8, 16)), np.ones((5, 16))
    assert kernel_distance(zero, one).value == pytest.approx(7.0, abs=1e-12)
    assert kernel_distance(np.full((8, 16), 0.5), zero).value == pytest.approx(1.25**3 - 1, abs=1e-12)
    assert kernel_distance(zero, zero).value == 0.0


def test_kernel_distance_of_a_set_with_itself_is_negative_and_not_clamped():
    x = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)).double().numpy()
    kernel = (x @ x.T / 16 + 1) ** 3
    off_diagonal = kernel.sum() - np.trace(kernel)
    expected = 2 * off_diagonal / (1000 * 999) - 2 * kernel.sum() / 1000**2
    assert kernel_distance(x, x).value == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(-0.0154979, abs=1e-7)


def test_kernel_distance_in_chunks_equals_one_matrix(monkeypatch):
    x, y = rng(1).standard_normal((60, 6)), rng(2).standard_normal((45, 6)) + 0.2
    whole = kernel_distance(x, y)
    monkeypatch.setattr(metrics, "CHUNK", 7)
    parts = kernel_distance(x, y)
    assert (parts.value, parts.standard_error) == pytest.approx((whole.value, whole.standard_error), rel=1e-10)


def test_kernel_distance_jackknife_equals_leaving_each_image_out():
    x, y = rng(1).standard_normal((12, 4)), rng(2).standard_normal((9, 4)) + 1
    left_x = np.array([kernel_distance(np.delete(x, i, 0), y).value for i in range(12)])
    left_y = np.array([kernel_distance(x, np.delete(y, i, 0)).value for i in range(9)])
    brute = np.sqrt(11 * left_x.var() + 8 * left_y.var())
    assert kernel_distance(x, y).standard_error == pytest.approx(brute, rel=1e-9)


def test_kernel_distance_standard_error_is_the_spread_over_fresh_samples():
    draws = [
        kernel_distance(rng(i).standard_normal((150, 4)), rng(1000 + i).standard_normal((150, 4)) + 0.5)
        for i in range(200)
    ]
    spread = np.std([d.value for d in draws])
    assert np.mean([d.standard_error for d in draws]) == pytest.approx(spread, rel=0.15)


def test_manifold_of_equal_and_of_disjoint_sets():
    x = rng().standard_normal((100, 5))
    same = precision_recall_density_coverage(x, x)
    assert same.precision.all() and same.recall.all() and same.coverage.all()
    far = precision_recall_density_coverage(x, x + 100)
    assert not (far.precision.any() or far.recall.any() or far.density.any() or far.coverage.any())
    duplicates = precision_recall_density_coverage(np.ones((20, 5)), np.ones((20, 5)))
    assert duplicates.precision.all() and duplicates.recall.all()


def test_tight_cluster_is_precise_and_recalls_little():
    # The first argument is the generated set; swapping them swaps precision and recall.
    tight, wide = rng(1).standard_normal((200, 16)) * 0.1, rng(2).standard_normal((200, 16)) * 3
    found = precision_recall_density_coverage(tight, wide)
    assert found.precision.mean() > 0.8 and found.recall.mean() < 0.3
    swapped = precision_recall_density_coverage(wide, tight)
    assert swapped.precision.mean() == found.recall.mean()


def test_manifold_equals_brute_force_and_does_not_depend_on_the_chunk(monkeypatch):
    x, y, k = rng(1).standard_normal((30, 3)), rng(2).standard_normal((25, 3)) * 1.5, 3
    radius = [sorted(np.linalg.norm(y - p, axis=1))[k] for p in y]
    inside = np.array([[np.linalg.norm(p - q) <= r for q, r in zip(y, radius)] for p in x])
    monkeypatch.setattr(metrics, "CHUNK", 8)
    found = precision_recall_density_coverage(x, y, k)
    assert np.array_equal(found.precision, inside.any(1)) and np.array_equal(found.coverage, inside.any(0))
    assert np.allclose(found.density, inside.sum(1) / k)


def test_too_few_images_are_named():
    two = np.zeros((2, 4))
    with pytest.raises(UserError, match="at least 3 images"):
        kernel_distance(two, two)
    with pytest.raises(UserError, match="more than 3 images"):
        precision_recall_density_coverage(two, two)
    with pytest.raises(UserError, match="splits is 3"):
        inception_score(two, splits=3)
