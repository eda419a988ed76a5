"""The log of scored samples, with a job that only counts. Real kills: tests/evaluation/suites/test_resume.py."""

import contextlib
import io
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import sample_log
from evaluation.sample_log import clear_samples, plan_units, score_samples
from launch.errors import UserError
from launch.stopping import Stopped


class CountingJob:
    """As much of a Job as the log needs, on one rank; may be told to stop after a unit."""

    def __init__(self, folder, stop_after=None):
        self.output_dir, self.said, self.stop_after = folder, [], stop_after
        self.runtime = SimpleNamespace(
            rank=0, world=1, is_main=True, barrier=lambda: None,
            broadcast=lambda value: value, gather_objects=lambda value: [value],
        )  # fmt: skip

    def say(self, text):
        self.said.append(text)

    def beat(self, step):
        pass

    def progress(self, total, description):
        return contextlib.nullcontext(SimpleNamespace(advance=lambda n: None))

    def stop_if_requested(self, step):
        if step == self.stop_after:
            raise Stopped(1)


def score(job, samples, calls, settings=None, budget=4):
    def compute(part):
        calls.append(list(part))
        return [{"value": len(s) / 3} for s in part]

    return score_samples(
        job, "texts", samples, compute, content=str, size=len, budget=budget, settings=settings or {"model": "m"}
    )


SAMPLES = ["a", "bbbb", "cc", "a", "dd"]


def test_rows_come_in_the_order_of_the_samples_and_equal_samples_are_scored_once(tmp_path):
    calls = []
    rows = score(CountingJob(tmp_path), SAMPLES, calls)
    assert [row["value"] * 3 for row in rows] == [1, 4, 2, 1, 2]
    assert calls == [["bbbb"], ["cc", "dd"], ["a"]]


def test_what_was_scored_before_is_not_scored_again(tmp_path):
    calls = []
    with pytest.raises(Stopped):
        score(CountingJob(tmp_path, stop_after=2), SAMPLES, calls)
    assert calls == [["bbbb"], ["cc", "dd"]]
    job = CountingJob(tmp_path)
    rows = score(job, SAMPLES, calls)
    assert calls[2:] == [["a"]] and job.said == ["2 of 3 units of texts were scored before"]
    assert rows == score(CountingJob(tmp_path / "other"), SAMPLES, [])


def test_rows_that_depend_on_their_samples_alone_are_kept_one_by_one(tmp_path):
    asked = []

    def judge(part):
        for i in reversed(range(len(part))):
            asked.append(part[i])
            if len(asked) == 3:
                raise UserError("gone")
            yield i, len(part[i])

    def run():
        settings = {"content": str, "size": len, "budget": 5, "settings": {}}
        return score_samples(CountingJob(tmp_path), "texts", SAMPLES, judge, alone=True, **settings)

    with pytest.raises(UserError, match="gone"):
        run()
    assert asked == ["bbbb", "a", "dd"]
    assert run() == [1, 4, 2, 1, 2] and asked[3:] == ["dd", "cc"]


def test_a_unit_that_was_cut_is_scored_again_as_a_whole(tmp_path):
    """So that the batches, and with them the last bits, are those of a run that was not killed."""
    score(CountingJob(tmp_path), SAMPLES, [])
    log = tmp_path / "scored" / "texts.rank-0.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(lines[0] + b"\n" + lines[1] + b"\n" + lines[2][:10])  # "dd" is cut, "a" is gone
    calls = []
    score(CountingJob(tmp_path), SAMPLES, calls)
    assert calls == [["cc", "dd"], ["a"]]


def test_a_line_that_was_cut_does_not_swallow_the_next(tmp_path):
    score(CountingJob(tmp_path), SAMPLES, [])
    log = tmp_path / "scored" / "texts.rank-0.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(lines[0] + b"\n" + lines[1][:10])
    for expected in ([["cc", "dd"], ["a"]], []):
        calls = []
        score(CountingJob(tmp_path), SAMPLES, calls)
        assert calls == expected


def test_rows_answer_for_their_settings_and_content_alone(tmp_path):
    score(CountingJob(tmp_path), SAMPLES, [])
    calls = []
    score(CountingJob(tmp_path), SAMPLES, calls, settings={"model": "other"})
    assert len(calls) == 3
    calls = []
    score(CountingJob(tmp_path), ["new", *SAMPLES], calls)
    assert ["new"] in calls


def test_a_kill_at_any_byte_of_the_log_ends_with_the_same_rows_and_the_same_log(tmp_path):
    """The log is appended to, so that a process which dies leaves some beginning of it: here each of them."""
    whole = score(CountingJob(tmp_path / "whole"), SAMPLES, [])
    full = (tmp_path / "whole" / "scored" / "texts.rank-0.jsonl").read_bytes()
    for size in range(len(full) + 1):
        log = tmp_path / "killed" / "scored" / "texts.rank-0.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(full[:size])
        calls = []
        assert score(CountingJob(tmp_path / "killed"), SAMPLES, calls) == whole
        assert set(log.read_bytes().split(b"\n")) == set(full.split(b"\n"))  # whole lines, though some are there twice
        assert all(
            call in [["bbbb"], ["cc", "dd"], ["a"]] for call in calls
        )  # in the units of a run that was not killed


class TwoRanks:
    """The runtime of one of two ranks that are threads; a rank that waits alone fails after a while."""

    def __init__(self, rank, shared):
        self.rank, self.world, self.is_main, self.shared = rank, 2, rank == 0, shared

    def barrier(self):
        self.shared.barrier.wait(20)

    def gather_objects(self, value):
        self.shared.parts[self.rank] = value
        self.barrier()
        found = list(self.shared.parts)
        self.barrier()
        return found

    def broadcast(self, value):
        return self.gather_objects(value)[0]


def test_a_rank_of_a_dead_job_that_still_writes_does_not_part_the_ranks(tmp_path):
    """The lock of the folder dies with rank 0. What rank 1 of that job writes after the new rank 0 has looked is not there."""
    score(CountingJob(tmp_path / "late"), SAMPLES, [])
    shared = SimpleNamespace(barrier=threading.Barrier(2), parts=[None, None])
    found, calls, stops = {}, {0: [], 1: []}, {0: [], 1: []}

    def work(rank):
        job = CountingJob(tmp_path / ("new" if rank == 0 else "late"))  # rank 1 would find all that there is to score
        job.runtime = TwoRanks(rank, shared)
        job.stop_if_requested = lambda step: (stops[rank].append(step), job.runtime.barrier())
        found[rank] = score(job, SAMPLES, calls[rank])

    ranks = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    [rank.start() for rank in ranks]
    [rank.join() for rank in ranks]
    assert found[0] == found[1] == score(CountingJob(tmp_path / "alone"), SAMPLES, [])
    assert stops[0] == stops[1] == [2, 3] and calls == {0: [["bbbb"], ["a"]], 1: [["cc", "dd"]]}


def test_a_row_is_the_same_before_and_after_it_was_written_down(tmp_path):
    """Else a run that was killed would go on with lists and texts where one that was not has tuples and numbers."""
    job, row = CountingJob(tmp_path), {"pair": (0.1, -0.0), 3: "three"}
    words = dict(content=str, size=len, budget=1, settings={})
    fresh = score_samples(job, "x", ["a"], lambda part: [row], **words)
    again = score_samples(job, "x", ["a"], lambda part: pytest.fail("scored twice"), **words)
    assert repr(fresh) == repr(again) == "[{'pair': [0.1, -0.0], '3': 'three'}]"


def test_a_line_of_which_the_system_takes_a_part_is_written_to_its_end(tmp_path):
    class Slow(io.FileIO):
        def write(self, data):
            return super().write(data[:7])

    with sample_log._AppendedFile(tmp_path / "log") as log:
        log.stream.close()
        log.stream = Slow(tmp_path / "log", "a")
        log.append("k", {"text": "ü" * 20})
    assert (tmp_path / "log").read_text() == '{"key": "k", "row": {"text": "' + "ü" * 20 + '"}}\n'


def test_noise_in_the_log_costs_a_sample_and_no_more(tmp_path):
    score(CountingJob(tmp_path), SAMPLES, [])
    log = tmp_path / "scored" / "texts.rank-0.jsonl"
    log.write_bytes(b'\x00\xff\n{"key": 3}\n[1]\n' + log.read_bytes())
    calls = []
    score(CountingJob(tmp_path), SAMPLES, calls)
    assert calls == []


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        score_samples(
            CountingJob(tmp_path),
            "x",
            ["a"],
            lambda part: [float("nan")],
            content=str,
            size=len,
            budget=1,
            settings={},
        )


def test_the_log_goes_when_the_result_is_there(tmp_path):
    job = CountingJob(tmp_path)
    score(job, SAMPLES, [])
    clear_samples(job)
    assert not (tmp_path / "scored").exists()


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(1, 30))
def test_units_hold_every_sample_once_within_the_budget(sizes, budget):
    units = plan_units(sizes, budget)
    assert sorted(n for unit in units for n in unit) == list(range(len(sizes)))
    assert all(len(unit) == 1 or sum(sizes[n] for n in unit) <= budget for unit in units)
