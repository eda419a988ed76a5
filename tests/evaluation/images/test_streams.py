"""Mean and covariance of streams: in batches, over pretended ranks, and over two real processes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from evaluation.images.frechet import FeatureStatistics, frechet_distance_from_statistics
from evaluation.images.streams import FeatureStream, merge_ranks
from launch.errors import UserError
from tests.forked import context


def features(count=101, dimensions=12):
    return np.random.default_rng(0).standard_normal((count, dimensions)) * 3 + 1e4


def close(found, whole, tolerance=1e-9):
    assert found.count == whole.count
    assert np.abs(found.mean - whole.mean).max() <= tolerance * np.abs(whole.mean).max()
    assert np.abs(found.scatter - whole.scatter).max() <= tolerance * np.abs(whole.scatter).max()


class Group:
    """Ranks that are threads: `sum` waits until every one has given its part."""

    def __init__(self, world):
        self.given, self.barrier = [None] * world, threading.Barrier(world, timeout=30)

    def rank(self, number):
        return SimpleNamespace(sum=lambda tensor: self.sum(number, tensor))

    def sum(self, number, tensor):
        self.given[number] = tensor
        self.barrier.wait()
        total = torch.stack(self.given).sum(0)
        self.barrier.wait()  # none gives its next part before all have read this one
        return total

    def merge(self, parts):
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(lambda pair: merge_ranks(pair[1], self.rank(pair[0])), enumerate(parts)))


@given(cuts=st.lists(st.integers(0, 101), max_size=6))
def test_any_cut_into_batches_gives_the_same(cuts):
    rows = features()
    stream = FeatureStream(12)
    for part in np.split(rows, sorted(cuts)):
        stream.add(part)
    close(stream.statistics, FeatureStatistics.of(rows))


@pytest.mark.parametrize("ranks", [1, 3, 7])
def test_ranks_together_equal_one(ranks):
    rows = features(20)
    parts = [FeatureStatistics.of(rows[rank::ranks]) for rank in range(ranks)]
    for merged in Group(ranks + 1).merge([*parts, FeatureStatistics.empty(12)]):  # the last has no sample at all
        close(merged, FeatureStatistics.of(rows))


def _rank(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)

    def total(tensor):
        dist.all_reduce(tensor)
        return tensor

    stream = FeatureStream(12)
    for batch in np.array_split(features()[rank::world], 4):
        stream.add(batch)
    merged = stream.merged(SimpleNamespace(sum=total))
    np.savez(f"{folder}/rank{rank}.npz", count=merged.count, mean=merged.mean, scatter=merged.scatter)
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
    whole, other = FeatureStatistics.of(features()), FeatureStatistics.of(features()[:50] * 1.1)
    for rank in range(world):
        with np.load(tmp_path / f"rank{rank}.npz") as saved:
            merged = FeatureStatistics(int(saved["count"]), saved["mean"], saved["scatter"])
        close(merged, whole)
        distance = frechet_distance_from_statistics(merged, other)
        assert distance == pytest.approx(frechet_distance_from_statistics(whole, other), rel=1e-9)


def test_bad_input_is_named():
    stream = FeatureStream(3)
    with pytest.raises(UserError, match="3 and 2 dimensions"):
        stream.add(np.zeros((4, 2)))
    with pytest.raises(UserError, match="row 0 holds NaN"):
        stream.add([[0.0, np.nan, 1.0]])
    with pytest.raises(UserError, match="no rank has any samples"):
        merge_ranks(stream.statistics, Group(1).rank(0))
    with pytest.raises(UserError, match="at least two images; there are 0"):
        _ = stream.statistics.covariance
