"""Sufficient statistics: batches and ranks merged are one set (real processes too), and give what the samples give."""

import itertools

import numpy as np
import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from evaluation import statistics as s
from evaluation.images.frechet import frechet_distance_from_moments
from launch.seeding import numpy_generator
from tests.forked import context


def draws(name, n, k=2):
    return numpy_generator(11, name).normal(0, 1, (k, n)) + 5


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 1))
def test_ranks_merged_are_one_rank_whatever_they_hold(sizes):
    x, y = draws("ranks", sum(sizes)) + 1e5  # a large mean: uncentred sums would lose ten digits here
    edges = np.cumsum([0, *sizes])
    parts = [s.Moments.of(x[a:b], y[a:b]) for a, b in itertools.pairwise(edges)]
    merged, whole = s.merge_moments(parts), s.Moments.of(x, y)
    assert merged.count == whole.count == sum(sizes)
    assert merged.mean_K == pytest.approx(whole.mean_K, rel=1e-14)
    assert merged.scatter_KK == pytest.approx(whole.scatter_KK, rel=1e-9, abs=1e-9)
    assert s.ratio_from_moments(merged).stderr == pytest.approx(s.ratio(x, y).stderr, rel=1e-9)


def features(count=101, dimensions=12):
    return numpy_generator(11, "features").standard_normal((count, dimensions)) * 3 + 1e4


def stream(batches):
    """The moments of features that come in batches; none is kept."""
    found = s.Moments.of_rows(np.zeros((0, 12)))
    for batch in batches:
        found = found.merge(s.Moments.of_rows(batch))
    return found


@given(st.lists(st.integers(0, 101), max_size=6))
def test_any_cut_into_batches_gives_the_same(cuts):
    rows = features()
    found, whole = stream(np.split(rows, sorted(cuts))), s.Moments.of_rows(rows)
    assert found.count == 101 and found.mean_K == pytest.approx(whole.mean_K, rel=1e-13)
    assert np.abs(found.scatter_KK - whole.scatter_KK).max() <= 1e-9 * np.abs(whole.scatter_KK).max()


def _rank(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    parts = [None] * world
    dist.all_gather_object(parts, stream(np.array_split(features()[rank::world], 4)))
    merged = s.merge_moments(parts)
    np.savez(f"{folder}/rank{rank}.npz", count=merged.count, mean=merged.mean_K, scatter=merged.scatter_KK)
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_equal_one(tmp_path):
    world = 2  # 101 samples: a sampler that pads would count one of them twice
    processes = [context.Process(target=_rank, args=(rank, world, str(tmp_path))) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    whole, other = s.Moments.of_rows(features()), s.Moments.of_rows(features()[:50] * 1.1)
    for rank in range(world):
        with np.load(tmp_path / f"rank{rank}.npz") as saved:
            merged = s.Moments(int(saved["count"]), saved["mean"], saved["scatter"])
        assert merged.count == 101
        assert np.abs(merged.covariance_KK - whole.covariance_KK).max() <= 1e-9 * np.abs(whole.covariance_KK).max()
        distance = frechet_distance_from_moments(merged, other)
        assert distance == pytest.approx(frechet_distance_from_moments(whole, other), rel=1e-9)


def test_estimates_from_moments_are_those_from_samples():
    x, y = draws("samples", 40)
    assert s.mean_from_moments(s.Moments.of(x)) == s.mean(x)
    assert s.mean(x).stderr == pytest.approx(x.std(ddof=1) / np.sqrt(40))
    assert s.ratio_from_moments(s.Moments.of(x, y), log=True) == s.ratio(x, y, log=True)
    residual = x - x.sum() / y.sum() * y
    assert s.ratio(x, y).stderr == pytest.approx(residual.std(ddof=1) / np.sqrt(40) / y.mean())


def test_clusters_are_kept_as_sums_and_sizes():
    x, codes = draws("clusters", 30)[0], np.repeat(np.arange(10), 3)
    sums = np.bincount(codes, weights=x)
    by_sums = s.ratio_from_moments(s.Moments.of(sums, np.full(10, 3.0)))
    clustered = s.clustered_mean(x, codes.tolist())
    assert (by_sums.value, by_sums.stderr, by_sums.n) == (
        pytest.approx(clustered.value),
        pytest.approx(clustered.stderr),
        clustered.n,
    )


def test_counts_of_wins_add_up():
    outcomes = [1.0] * 7 + [0.5] * 4 + [0.0] * 3
    assert s.win_rate_from_counts(7, 4, 3) == s.win_rate(outcomes)
    with pytest.raises(ValueError, match="sum of at least 1"):
        s.win_rate_from_counts(0, 0, 0)


def test_delta_method_has_the_error_of_the_ratio_and_of_the_correlation():
    x, y = draws("delta", 2000)
    y = 0.7 * x + y
    found = s.delta_method(lambda m: m[0] / m[1], s.Moments.of(x, y))
    assert (found.value, found.stderr) == (
        pytest.approx(s.ratio(x, y).value),
        pytest.approx(s.ratio(x, y).stderr, rel=1e-6),
    )

    def correlation(m):
        return (m[2] - m[0] * m[1]) / np.sqrt((m[3] - m[0] ** 2) * (m[4] - m[1] ** 2))

    found = s.delta_method(correlation, s.Moments.of(x, y, x * y, x * x, y * y))
    r = np.corrcoef(x, y)[0, 1]
    assert found.value == pytest.approx(r)
    assert found.stderr == pytest.approx((1 - r**2) / np.sqrt(2000), rel=0.08)  # normal theory, in the limit


def test_what_has_no_moments_is_named():
    with pytest.raises(ValueError, match="unit 1 holds NaN"):
        s.Moments.of([1.0, np.nan])
    with pytest.raises(ValueError, match="moments of 2, 3 numbers cannot be merged"):
        s.Moments.of_rows(np.zeros((4, 2))).merge(s.Moments.of_rows(np.zeros((4, 3))))
    with pytest.raises(ValueError, match="no unit was counted"):
        s.mean_from_moments(s.Moments.of(np.zeros(0)))
    with pytest.raises(ValueError, match="of 2 numbers, where 1 are needed"):
        s.mean_from_moments(s.Moments.of([1.0], [2.0]))
    assert s.mean_from_moments(s.Moments.of([1.0])).method == "none (n = 1)"
