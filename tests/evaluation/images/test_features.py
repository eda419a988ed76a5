"""Features over ranks, and the cache that goes by content: hits, misses, damage, kills and writers at the same time."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from data.images import image_set
from evaluation.images.extractors.base import Extractor
from evaluation.images.features import (
    BLOCK,
    Features,
    FeatureSource,
    features_key,
    read_features,
    run_extractor,
    write_features,
)
from launch.errors import UserError
from tests.evaluation.images.conftest import one_rank
from tests.forked import context


class Counting:
    """An extractor that knows how many images it saw: features are each image's mean and first pixel."""

    def __init__(self, sha256="a", logits=False):
        self.seen, self.logits = 0, logits
        self.extractor = Extractor("counting", sha256, "means", lambda device: self.features)

    def features(self, images):
        self.seen += len(images)
        vectors = torch.stack([images.double().mean(dim=(1, 2, 3)), images[:, 0, 0, 0].double()], dim=1)
        return vectors, vectors * 2 if self.logits else None


def pictures(count=23, seed=0):
    return image_set(np.random.default_rng(seed).integers(0, 256, (count, 1, 6, 6), dtype=np.uint8), None, "x")


def expected(images):
    return np.stack([images.images.mean(axis=(1, 2, 3)), images.images[:, 0, 0, 0]], axis=1)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_the_batch_does_not_matter(batch):
    images = pictures()
    assert np.array_equal(run_extractor(Counting().features, images.images, batch).features, expected(images))


class Threads:
    """Ranks that are threads: each waits for the others where ranks meet."""

    def __init__(self, world):
        self.world, self.given, self.meeting = world, [None] * world, threading.Barrier(world, timeout=30)

    def run(self, work):
        """What `work(rank)` gives on each rank."""
        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(lambda number: work(self.rank(number)), range(self.world)))

    def rank(self, number):
        rank = one_rank()
        rank.rank, rank.world = number, self.world
        rank.gather_objects = lambda value: self.meet(number, value)
        rank.broadcast = lambda value: self.meet(number, value)[0]
        return rank

    def meet(self, number, value):
        self.given[number] = value
        self.meeting.wait()
        found = list(self.given)
        self.meeting.wait()  # none gives its next value before all have read this one
        return found


@pytest.mark.parametrize("world", [1, 2, 3, 7])  # of 5 blocks: with 7 some ranks have nothing
def test_every_image_is_seen_once_and_in_its_place_on_any_number_of_ranks(world):
    images, counters = pictures(4 * BLOCK + 23), [Counting(logits=True) for _ in range(world)]
    rounds = []

    def work(rank):
        source = FeatureSource(counters[rank.rank].extractor, rank, stop=rounds.append)
        return source.of(images)

    for found in Threads(world).run(work):
        assert np.array_equal(found.features, expected(images)) and np.array_equal(found.logits, 2 * expected(images))
    assert sum(counter.seen for counter in counters) == len(images)
    assert len(rounds) == world * -(-5 // world) and max(rounds) == 5  # all ranks are asked equally often


def test_what_is_cached_is_not_computed_again(tmp_path):
    images, first, second = pictures(), Counting(logits=True), Counting(logits=True)
    made = FeatureSource(first.extractor, one_rank(), tmp_path / "cache").of(images)
    source = FeatureSource(second.extractor, one_rank(), tmp_path / "cache")
    again = source.of(images)
    assert (first.seen, second.seen, source.known) == (23, 0, 23)
    assert np.array_equal(made.features, again.features) and np.array_equal(made.logits, again.logits)
    assert source.of(pictures(22)).features.shape == (22, 2) and second.seen == 22  # other images


@pytest.mark.parametrize("world", [1, 2])
def test_only_the_blocks_that_are_missing_are_computed(tmp_path, world):
    images = pictures(4 * BLOCK + 23)
    FeatureSource(Counting().extractor, one_rank(), tmp_path).of(images)
    lost = [features_key(Counting().extractor, torch.device("cpu"), images.images[i * BLOCK :][:BLOCK]) for i in (1, 4)]
    for name in lost:
        (tmp_path / f"{name}.safetensors").unlink()
    counters = [Counting() for _ in range(world)]
    for found in Threads(world).run(
        lambda rank: FeatureSource(counters[rank.rank].extractor, rank, tmp_path).of(images)
    ):
        assert np.array_equal(found.features, expected(images))
    assert sorted(counter.seen for counter in counters) == ([BLOCK + 23] if world == 1 else [23, BLOCK])
    assert len(list(tmp_path.iterdir())) == 5


def test_features_that_are_no_numbers_are_named_and_not_kept(tmp_path):
    images = pictures(BLOCK + 5)
    extractor = Extractor(
        "n", "a", "", lambda device: lambda part: (torch.full((len(part), 2), 1.0 if len(part) > 5 else np.nan), None)
    )
    with pytest.raises(UserError, match=f"x: row {BLOCK} holds NaN"):
        FeatureSource(extractor, one_rank(), tmp_path).of(images)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_key_knows_all_that_decides(tmp_path):
    images, cpu = pictures().images, torch.device("cpu")
    keys = {
        features_key(Counting().extractor, cpu, images),
        features_key(Counting("b").extractor, cpu, images),
        features_key(Counting().extractor, torch.device("cuda"), images),
        features_key(Counting().extractor, cpu, images[::-1]),
        features_key(Counting().extractor, cpu, images.reshape(23, 1, 4, 9)),
        features_key(Counting().extractor, cpu, pictures(seed=1).images),
    }
    assert len(keys) == 6 and features_key(Counting().extractor, cpu, images.copy()) in keys


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    images, counter = pictures(), Counting()
    FeatureSource(counter.extractor, one_rank(), tmp_path).of(images)
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"cut": content[:-9], "flipped": content, "empty": b""}[damage])
    assert read_features(path) is None
    found = FeatureSource(counter.extractor, one_rank(), tmp_path).of(images)
    assert counter.seen == 46 and np.array_equal(found.features, expected(images))
    assert np.array_equal(read_features(path).features, expected(images))


def test_writers_at_the_same_time_leave_a_whole_file(tmp_path):
    path, rows = tmp_path / "f.safetensors", [np.full((4000, 8), float(i)) for i in range(4)]
    stop, faults = threading.Event(), []

    def read():
        while not stop.is_set():
            there, found = path.exists(), read_features(path)
            if there and (found is None or len(np.unique(found.features)) != 1):
                faults.append(found)

    def write(i):
        for _ in range(15):
            write_features(path, Features(rows[i], None))

    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not faults and len(np.unique(read_features(path).features)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


def _write_for_ever(path):
    while True:
        write_features(path, Features(np.ones((20000, 16)), None))


@pytest.mark.distributed
def test_a_killed_writer_leaves_a_whole_file_or_none(tmp_path):
    path = tmp_path / "f.safetensors"
    for pause in (0.0, 0.019):
        writer = context.Process(target=_write_for_ever, args=(path,))
        writer.start()
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(pause)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert read_features(path).features.shape == (20000, 16)
