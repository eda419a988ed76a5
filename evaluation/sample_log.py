"""Samples that are written as they are scored, so that a killed evaluation goes on where it was, to the same result.

`score_samples` is all that a suite calls. It divides samples into units by size, in one way whatever was done before
and however many processes there are; a unit's rows are appended to `scored/NAME.rank-K.jsonl` when it is done. A row is
keyed by the hash of its sample's content and of the settings, so that no row can answer for another sample or protocol.
What a kill cut is scored again in the same units, that is in the same batches: the result is equal to the bit.

A log is appended to, so whatever moment a process dies at it leaves the beginning of what it would have written: whole
lines, and a part of one, which is cut off before the next is written. Rank 0 alone reads the logs and tells the others,
since a rank of an earlier job, whose main rank died and with it the lock of the folder, may still be writing into its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from evaluation.artefacts import beating
from launch.files import SCORED, canonical_json, sha256_text
from launch.stage import Job

T = TypeVar("T")
Row = Any
"""What JSON can hold: floats come back as they were, to the bit."""
UNIT_SAMPLES = 1024
"""Samples of a unit, at most: what a kill can lose, and how often the log is written."""


def plan_units(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Numbers of samples in units, largest first: each of at most `budget` in sum and UNIT_SAMPLES samples, or one."""
    units: list[list[int]] = []
    total = 0
    for number in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if not units or total + sizes[number] > budget or len(units[-1]) == UNIT_SAMPLES:
            units.append([])
            total = 0
        units[-1].append(number)
        total += sizes[number]
    return units


def score_samples(
    job: Job,
    name: str,
    samples: Sequence[T],
    compute: Callable[[list[T]], Iterable[Row]],
    *,
    content: Callable[[T], Any],
    size: Callable[[T], int],
    budget: int,
    settings: dict[str, Any],
    alone: bool = False,
) -> list[Row]:
    """The row of each sample, in their order, on every rank; each is computed once, over all ranks and sessions.

    `compute` gives the rows of some samples. `content` is what a row depends on besides `settings` (the model's hash, the
    context length, ...), both as JSON; samples of equal content share a row. `size` and `budget` (tokens, as a rule)
    decide how many samples `compute` gets at once. A request to stop is followed after a unit.

    `alone`: a row depends on its sample alone and never on its unit. Then `compute` gives pairs of a sample's number and its
    row, in any order; each is written as it comes, whatever happens next, and a unit that was cut is not computed again but
    gone on with.
    """
    keys = [sha256_text(canonical_json([name, settings, content(sample)])) for sample in samples]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    unique = sorted(first.values())
    units = [[unique[i] for i in unit] for unit in plan_units([size(samples[n]) for n in unique], budget)]
    known: dict[str, Row] = job.runtime.broadcast(_read_logs(job, name) if job.runtime.is_main else None)
    pending = [unit for unit in units if not all(keys[n] in known for n in unit)]
    if len(pending) < len(units):
        job.say(f"{len(units) - len(pending)} of {len(units)} units of {name} were scored before")
    rank, world = job.runtime.rank, job.runtime.world
    new: dict[str, Row] = {}
    with beating(job, len(pending), f"score {name}") as beat, _AppendedFile(_log(job, name, rank)) as log:
        for start in range(0, len(pending), world):
            for unit in pending[start + rank : start + rank + 1]:
                left = [keys[n] for n in unit if not (alone and keys[n] in known)]
                rows = compute([samples[first[key]] for key in left])
                for key, row in ((left[i], row) for i, row in rows) if alone else zip(left, rows, strict=True):
                    new[key] = log.append(key, row)
            beat(len(pending[start : start + world]))
            job.stop_if_requested(min(start + world, len(pending)))
    for part in job.runtime.gather_objects(new):
        known |= part
    return [known[key] for key in keys]


def clear_samples(job: Job) -> None:
    """Remove the logs. When the result is written; it holds the samples."""
    job.runtime.barrier()
    if job.runtime.is_main:
        shutil.rmtree(job.output_dir / SCORED, ignore_errors=True)


def _log(job: Job, name: str, rank: int) -> Path:
    return job.output_dir / SCORED / f"{name}.rank-{rank}.jsonl"


def _read_logs(job: Job, name: str) -> dict[str, Row]:
    """Key -> row of all ranks of earlier sessions."""
    known: dict[str, Row] = {}
    for path in sorted((job.output_dir / SCORED).glob(f"{name}.rank-*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                entry = json.loads(line)
                known[entry["key"]] = entry["row"]
            except (ValueError, TypeError, KeyError):
                continue  # a machine that lost its power may leave anything; what cannot be read is scored again
    return known


class _AppendedFile:
    """A JSONL file that whole lines are appended to, each at once. A last line that a kill cut is cut off first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed in __exit__
        self.stream.seek(0)
        self.stream.truncate(self.stream.read().rfind(b"\n") + 1)

    def append(self, key: str, row: Row) -> Row:
        """Write one line, and give the row as it will be read (lists for tuples, texts for the keys of a mapping), so
        that a run which was killed goes on with what one that was not has in hand. ValueError for NaN and infinity.
        """
        line = json.dumps({"key": key, "row": row}, ensure_ascii=False, allow_nan=False)
        rest = line.encode() + b"\n"
        while rest:  # the system may take a part, as on a disk that is nearly full: the next call then says why
            rest = rest[self.stream.write(rest) :]
        return json.loads(line)["row"]

    def __enter__(self) -> _AppendedFile:
        return self

    def __exit__(self, *reason: object) -> None:
        os.fsync(self.stream.fileno())
        self.stream.close()
