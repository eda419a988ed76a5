"""An evaluation that is killed (SIGKILL, in the middle of a line) goes on, and ends with the same files to the bit."""

import functools
import importlib
import json
import os
import signal

import pytest

from evaluation import sample_log
from tests.evaluation.resumed import check_same
from tests.forked import ForkedJob

TEXTS = [f"document {n} " + "some words of text. " * (n % 7) for n in range(40)]


def die():
    """End by SIGKILL; nothing that comes after it is done, whenever the signal comes."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def die_writing(path, rank: int, lines: int):
    """In a rank: after so many samples, write half of the next one and end by SIGKILL."""
    written = 0
    append = sample_log._AppendedFile.append

    def fatal(self, key, row):
        nonlocal written
        if written == lines and int(os.environ.get("RANK", "0")) == rank:
            self.stream.write(json.dumps({"key": key, "row": row}).encode()[:40])
            die()
        written += 1
        return append(self, key, row)

    sample_log._AppendedFile.append = fatal


def die_before(path, module: str, name: str, after: bool = False):
    """In a rank: end by SIGKILL where a function of a module is called, or where it has returned."""
    where = importlib.import_module(module)
    real = getattr(where, name)

    def fatal(*words, **settings):
        if after:
            real(*words, **settings)
        die()

    setattr(where, name, fatal)


def die_clearing(path):
    """In a rank: end by SIGKILL when the first of the logs has been removed."""
    real = sample_log.shutil.rmtree

    def fatal(folder, **settings):
        if folder.name != "scored":
            return real(folder, **settings)
        next(iter(sorted(folder.iterdir()))).unlink()
        die()

    sample_log.shutil.rmtree = fatal


MOMENTS = {
    "in the first line": functools.partial(die_writing, rank=0, lines=0),
    "in the eighteenth line": functools.partial(die_writing, rank=0, lines=17),
    "before the samples are written": functools.partial(
        die_before, module="evaluation.suites.text_part", name="write_samples"
    ),
    "before the result is written": functools.partial(
        die_before, module="evaluation.suites.text_part", name="write_result"
    ),
    "while the log is cleared": die_clearing,
    "when the log is gone": functools.partial(
        die_before, module="evaluation.suites.text_run", name="clear_samples", after=True
    ),
    "before the provenance": functools.partial(die_before, module="launch.stage", name="_finish"),
}
"""Where a process is killed, and the hook that does it there."""
LINES = {"in the first line": 0, "in the eighteenth line": 17}


def words(models, documents, out):
    settings = {"model": models / "policy", "documents": documents, "context": 32, "batch_tokens": 8}
    return [part for key, value in (settings | {"output_dir": out}).items() for part in (f"--{key}", value)]


def run(words, folder, world=1, hook=None):
    job = ForkedJob(words, folder, world, hook=hook, module="evaluation.suites.text")
    return job.wait(200), "".join(job.say(rank) for rank in range(world))


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """The folder of a run that was not killed, and its documents."""
    root = tmp_path_factory.mktemp("whole")
    path = root / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    codes, said = run(words(models, path, root / "out"), root / "logs")
    assert codes == [0], said
    return root / "out", path


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_evaluation_killed_at_any_moment_ends_with_the_same_result(models, whole, tmp_path, moment):
    expected, documents = whole
    out = tmp_path / "killed"
    codes, said = run(words(models, documents, out), tmp_path / "logs", hook=MOMENTS[moment])
    assert codes == [-signal.SIGKILL], said
    assert not (out / "provenance.json").exists()
    if moment in LINES:
        log = (out / "scored" / "documents.rank-0.jsonl").read_bytes()
        cut = (log.count(b"\n"), log.endswith(b"\n"), (out / "documents" / "results.json").exists())
        assert cut == (LINES[moment], False, False), said
    codes, said = run(words(models, documents, out), tmp_path / "logs")
    assert codes == [0], said
    kept = moment in ("in the eighteenth line", "before the samples are written", "before the result is written")
    assert ("were scored before" in said) is kept, said
    check_same(out / "documents", expected / "documents")
    assert not (out / "scored").exists()  # samples.jsonl has them


@pytest.mark.distributed
def test_two_processes_that_lose_one_are_finished_by_one(models, whole, tmp_path):
    expected, documents = whole
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
    check_same(out / "documents", expected / "documents")
