"""An evaluation that is killed (SIGKILL, in the middle of a line) goes on, and ends with the same files to the bit."""

import functools
import json
import os
import signal

import pytest

from evaluation import sample_log
from tests.evaluation.resumed import check_same
from tests.forked import ForkedJob

TEXTS = [f"document {n} " + "some words of text. " * (n % 7) for n in range(40)]


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return path


def die_writing(path, rank: int, lines: int):
    """In a rank: after so many samples, write half of the next one and end by SIGKILL."""
    written = 0
    append = sample_log._AppendedFile.append

    def fatal(self, entry):
        nonlocal written
        if written == lines and int(os.environ.get("RANK", "0")) == rank:
            self.stream.write(json.dumps(entry).encode()[:40])
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()  # nothing is written after the half, whenever the signal comes
        written += 1
        append(self, entry)

    sample_log._AppendedFile.append = fatal


def words(models, documents, out):
    settings = {"model": models / "policy", "documents": documents, "context": 32, "batch_tokens": 8}
    return [part for key, value in (settings | {"output_dir": out}).items() for part in (f"--{key}", value)]


def run(words, folder, world=1, hook=None):
    job = ForkedJob(words, folder, world, hook=hook, module="evaluation.suites.text")
    return job.wait(200), "".join(job.say(rank) for rank in range(world))


@pytest.mark.parametrize("lines", [0, 17])
def test_a_killed_evaluation_ends_with_the_same_result(models, documents, tmp_path, lines):
    codes, said = run(words(models, documents, tmp_path / "whole"), tmp_path / "logs")
    assert codes == [0], said
    out = tmp_path / "killed"
    codes, said = run(
        words(models, documents, out), tmp_path / "logs", hook=functools.partial(die_writing, rank=0, lines=lines)
    )
    assert codes == [-signal.SIGKILL], said
    log = (out / "scored" / "documents.rank-0.jsonl").read_bytes()
    assert (log.count(b"\n"), log.endswith(b"\n"), (out / "results.json").exists()) == (lines, False, False), said
    codes, said = run(words(models, documents, out), tmp_path / "logs")
    assert codes == [0], said
    assert ("were scored before" in said) is (lines > 0), said
    check_same(out, tmp_path / "whole")
    assert not (out / "scored").exists()  # samples.jsonl has them


@pytest.mark.distributed
def test_two_processes_that_lose_one_are_finished_by_one(models, documents, tmp_path):
    codes, said = run(words(models, documents, tmp_path / "whole"), tmp_path / "logs")
    assert codes == [0], said
    out = tmp_path / "killed"
    job = ForkedJob(
        words(models, documents, out),
        tmp_path / "two",
        2,
        hook=functools.partial(die_writing, rank=1, lines=8),
        module="evaluation.suites.text",
    )
    job.ranks[1].join(100)
    assert job.ranks[1].exitcode == -signal.SIGKILL, job.say(1)
    job.kill()
    job.wait()
    counts = [(out / "scored" / f"documents.rank-{k}.jsonl").read_bytes().count(b"\n") for k in (0, 1)]
    assert counts[1] == 8 and counts[0] > 0
    codes, said = run(words(models, documents, out), tmp_path / "logs")
    assert codes == [0] and "were scored before" in said
    check_same(out, tmp_path / "whole")
