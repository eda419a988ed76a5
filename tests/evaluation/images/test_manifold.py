"""Precision, recall, density and coverage: known answers, brute force, and the jackknife over blocks."""

import numpy as np
import pytest

from evaluation.images import manifold
from evaluation.images.manifold import (
    NAMES,
    jackknife_manifold,
    nearest_neighbours,
    precision_recall_density_coverage,
)
from launch.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


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
    monkeypatch.setattr(manifold, "CHUNK", 8)
    found = precision_recall_density_coverage(x, y, k)
    assert np.array_equal(found.precision, inside.any(1)) and np.array_equal(found.coverage, inside.any(0))
    assert np.allclose(found.density, inside.sum(1) / k)


@pytest.mark.parametrize("blocks", [2, 5, 9])
def test_jackknife_equals_leaving_each_block_out(monkeypatch, blocks):
    x, y, k = rng(1).standard_normal((36, 3)), rng(2).standard_normal((45, 3)) * 1.4, 3
    blocks_x, blocks_y = rng(3).permutation(36) % blocks, rng(4).permutation(45) % blocks
    monkeypatch.setattr(manifold, "CHUNK", 10)
    found = jackknife_manifold(x, y, blocks_x, blocks_y, k)
    for b in range(blocks):
        for part, sets in (
            (found.without_generated, (x[blocks_x != b], y)),
            (found.without_real, (x, y[blocks_y != b])),
        ):
            again = precision_recall_density_coverage(*sets, k)
            assert part[b] == pytest.approx([getattr(again, name).mean() for name in NAMES], abs=1e-12)


def test_jackknife_when_nearly_all_neighbours_are_of_one_block():
    # four tight clusters, one image of each in block 1: without block 0 its neighbours are far away, on no short list
    cluster, blocks = np.repeat(np.arange(4), 40), (np.arange(160) % 40 == 7).astype(np.int64)
    x = rng(1).standard_normal((160, 2)) * 0.1 + 100.0 * cluster[:, None] ** 2
    y = rng(2).standard_normal((160, 2)) * 0.1 + 100.0 * cluster[:, None] ** 2
    found = jackknife_manifold(x, y, blocks, blocks)
    for b in (0, 1):
        for part, sets in ((found.without_real, (x, y[blocks != b])), (found.without_generated, (x[blocks != b], y))):
            again = precision_recall_density_coverage(*sets)
            assert part[b] == pytest.approx([getattr(again, name).mean() for name in NAMES], abs=1e-12)


def test_nearest_neighbours_equal_a_search(monkeypatch):
    x, y = rng(1).standard_normal((25, 4)), rng(2).standard_normal((30, 4))
    monkeypatch.setattr(manifold, "CHUNK", 7)
    index, distance = nearest_neighbours(x, y, 2)
    full = np.linalg.norm(x[:, None] - y[None], axis=2)
    assert np.array_equal(index, np.argsort(full, axis=1)[:, :2])
    assert np.allclose(distance, np.sort(full, axis=1)[:, :2])


def test_bad_input_is_named():
    two, good = np.zeros((2, 4)), rng().standard_normal((9, 4))
    with pytest.raises(UserError, match="more than 3 images in each set, not 2 and 2"):
        precision_recall_density_coverage(two, two)
    with pytest.raises(UserError, match="4 and 3 dimensions"):
        precision_recall_density_coverage(good, good[:, :3])
    with pytest.raises(UserError, match="a block leaves too few images"):
        jackknife_manifold(good, good, np.arange(9) % 2 * 0, np.array([0, 0, 0, 0, 0, 0, 0, 1, 1]))
