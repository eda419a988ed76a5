"""`alignkit run RECIPE --output_dir DIR`: the stages of a lifecycle in order.

A recipe names its stages; a stage names its command and its config, and refers to the artefact of an earlier stage
as `@stage` (or `@stage/file`). Stages whose config and inputs are unchanged are skipped without loading torch, the
one that was interrupted is resumed. Each stage runs in a process of its own, forked from a server that has
imported the libraries once: the import costs more than some stages. With `jobs: N` (or `--jobs N`) up to N stages
that do not need one another run at a time, each on its share of the cores; an entry with `alone: true` gets the whole
machine. SIGTERM, SIGUSR1 and Ctrl-C stop the stages that run, which save, and no further one is started; the code is
75 then, or 130 by Ctrl-C. A second Ctrl-C ends everything at once.

`--seed N` (0 unless given) repeats a lifecycle with other chance: it adds 1000 N to the seed of every stage, so that
stages which the recipe gives different seeds keep different ones. `--STAGE.seed` sets that of one stage.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.cli import find_stage
from launch.config import find_recipe, parse_overrides, read_yaml
from launch.errors import EXIT_INTERRUPTED, UserError, nearest
from launch.files import changed_file, damaged_file, make_folder, read_json
from launch.hub import find_moved
from launch.plan import REPORT, PlannedStage, check_configs, is_entry_unchanged, plan_stages
from launch.provenance import content_of, fingerprint_input
from launch.stage_process import RunningStage, environment_of
from launch.stopping import listening


class StageFailed(Exception):
    """A stage ended with another code than 0; it has said why itself."""

    def __init__(self, code: int) -> None:
        self.code = code


def main(arguments: Sequence[str]) -> None:
    """Entry point of `alignkit run`."""
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(
            "alignkit run RECIPE --output_dir DIR [--stages a,b] [--jobs N] [--seed N] [--STAGE.key value ...]\n\n"
            + (__doc__ or "")
        )
        return
    overrides = parse_overrides(words[1:])
    output_dir = overrides.pop("output_dir", None)
    if not output_dir or not isinstance(output_dir, str):
        raise UserError("alignkit run: output_dir is missing; add --output_dir FOLDER")
    if Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise UserError(f"output_dir: {output_dir} is a file; name a folder")
    chosen = [s for s in str(overrides.pop("stages", "")).split(",") if s]
    asked = overrides.pop("jobs", None)
    recipe = find_recipe(words[0])
    content = read_yaml(recipe)
    jobs = _number_of_jobs(asked if asked is not None else content.get("jobs", 1), str(recipe))
    seed = _number_of_seed(overrides.pop("seed", 0))
    plan = plan_stages(content, str(recipe), Path(output_dir), overrides, seed)
    unknown = [name for name in chosen if name not in {stage.name for stage in plan}]
    if unknown:
        raise UserError(f"--stages: no stage '{unknown[0]}' in {recipe}{nearest(unknown[0], [s.name for s in plan])}")
    check_configs(plan)
    try:
        run_plan([s for s in plan if not chosen or s.name in chosen], Path(output_dir), jobs)
    except StageFailed as failure:
        sys.exit(failure.code)
    show_results(content.get("show"), plan, Path(output_dir))


def _number_of_jobs(value: Any, where: str) -> int:
    if str(value).isdecimal() and int(value) > 0:
        return int(value)
    raise UserError(f"{where}: jobs: '{value}' is not a positive integer; say how many stages may run at a time")


def _number_of_seed(value: Any) -> int:
    if str(value).isdecimal():
        return int(value)
    raise UserError(
        f"command line: seed: '{value}' is no integer of 0 or more; give one, or --STAGE.seed for one stage"
    )


# ---------------------------------------------------------------------------------------------- running


def is_up_to_date(stage: PlannedStage) -> bool:
    """Whether a stage is complete, its recipe entry, inputs and version the same; no torch is needed to tell.

    Its own files are looked at by name and size. What they hold is read when another stage is about to use them.
    """
    try:
        provenance = read_json(stage.folder / "provenance.json")
        if not is_entry_unchanged(stage):
            return False
        if provenance.get("version", 1) != find_stage(stage.command).version:
            return False
        if damaged_file(stage.folder, provenance):
            return False
        before = provenance["inputs"]
        now = {name: fingerprint_input(name, entry.get("path") or entry["source"]) for name, entry in before.items()}
        return not find_moved(before, now) and all(content_of(now[name]) == content_of(before[name]) for name in before)
    except (UserError, KeyError, TypeError):
        return False


def run_plan(plan: Sequence[PlannedStage], root: Path, jobs: int = 1) -> None:
    """Run the stages that are not up to date, up to `jobs` at a time, each after the stages that it needs.

    Of those that could start the recipe's first comes first: one that wants to be alone holds back those after it.

    StageFailed when one ends with another code than 0, or when we are asked to stop: no further stage is started,
    those that run are waited for.
    """
    make_folder("output_dir", root)
    schedule = Schedule(plan, jobs)
    with listening(schedule.stop):
        while schedule.running or (schedule.waiting and schedule.goes_on):
            schedule.skip_finished()
            schedule.start_next()
            schedule.wait()
    for words in schedule.last_words:
        print(words, file=sys.stderr, flush=True)
    if schedule.stop_code and (schedule.waiting or schedule.code):
        print("alignkit: stopped as asked; run the same command again to resume", file=sys.stderr, flush=True)
        schedule.code = schedule.code or schedule.stop_code
    if schedule.code:
        raise StageFailed(schedule.code)


class Schedule:
    """Which stages of a plan wait, which run, and whether more may start."""

    def __init__(self, plan: Sequence[PlannedStage], jobs: int) -> None:
        self.plan, self.jobs = plan, jobs
        self.waiting = list(plan)
        self.running: dict[int, RunningStage] = {}
        self.code = self.stop_code = 0
        """The code of a stage that failed, and the one that we end with when we are asked to stop."""
        self.last_words: list[str] = []
        """Why stages failed, as far as others ran on and may have said more since."""
        self._stale: set[str] = set()
        self._skipped: set[str] = set()
        self._verified: set[str] = set()
        """Of those that were skipped, the ones whose files were read and are as their stage wrote them."""

    @property
    def goes_on(self) -> bool:
        return self.code == 0 == self.stop_code

    def _ready(self) -> list[PlannedStage]:
        """The stages that wait for no other one, in order."""
        unfinished = {s.name for s in self.waiting} | {r.stage.name for r in self.running.values()}
        return [s for s in self.waiting if not s.needs & unfinished] if self.goes_on else []

    def skip_finished(self) -> None:
        """Take out what is up to date, whatever runs: it needs no place, and others may wait for it alone."""
        while unseen := [s for s in self._ready() if s.name not in self._stale]:
            for stage in unseen:
                if is_up_to_date(stage):
                    self.waiting.remove(stage)
                    self._skipped.add(stage.name)
                    print(f"{self._head(stage)}: up to date", file=sys.stderr, flush=True)
                else:
                    self._stale.add(stage.name)  # its inputs are made: asking again would hash them again

    def start_next(self) -> None:
        """Start the stages that may start now."""
        for stage in self._ready():
            crowd = [r.stage for r in self.running.values()]
            if len(crowd) == self.jobs or any(s.alone for s in crowd) or (stage.alone and crowd):
                return
            if self._call_back_makers(stage):
                return
            self.waiting.remove(stage)
            started = RunningStage(stage, self._head(stage), environment_of(stage, self.jobs), self.waiting)
            self.running[started.process.sentinel] = started
            if self.stop_code:  # between the two lines above
                started.stop()
                return

    def _call_back_makers(self, stage: PlannedStage) -> bool:
        """Whether an artefact that a stage needs has changed since it was made: it is made again first.

        What was skipped after it is judged anew then.
        """
        unread = stage.needs & (self._skipped - self._verified)
        makers = [s for s in self.plan if s.name in unread]
        damaged = {s.name for s in makers if changed_file(s.folder, read_json(s.folder / "provenance.json"))}
        self._verified |= unread - damaged
        again = set(damaged)
        for later in self.plan:  # in order: a stage comes after those that it needs
            if later.name in self._skipped and later.needs & again:
                again.add(later.name)
        self._skipped -= again
        self._verified -= again
        self._stale |= damaged
        self.waiting = [s for s in self.plan if s in self.waiting or s.name in again]
        return bool(damaged)

    def wait(self) -> None:
        """Wait until a stage ends."""
        for sentinel in multiprocessing.connection.wait(list(self.running)) if self.running else []:
            ended = self.running.pop(sentinel)  # type: ignore[arg-type]
            self.code = ended.finish(self.stop_code) or self.code
            if ended.failure and self.running:
                self.last_words.append(ended.failure)

    def _head(self, stage: PlannedStage) -> str:
        return f"[{self.plan.index(stage) + 1}/{len(self.plan)}] {stage.name}"

    def stop(self, code: int) -> None:
        """Start nothing more and ask the stages that run to save and to end; `code` is what we end with."""
        if code == EXIT_INTERRUPTED and not self.stop_code:
            os.write(2, b"alignkit: the stages that run save and end; Ctrl-C again ends everything at once\n")
        self.stop_code = self.stop_code or code
        for started in list(self.running.values()):
            started.stop()


def show_results(shown: Sequence[str] | None, plan: Sequence[PlannedStage], root: Path) -> None:
    """Print text files, and the paths of others: those that the recipe asks to show, or else its reports."""
    reports = [f"{s.name}/{file}" for s in plan if s.command == REPORT for file in ("leaderboard.txt", "index.html")]
    for entry in reports if shown is None else shown:
        path = root / str(entry).removeprefix("@")
        if not path.exists():
            continue
        print(path.read_text(encoding="utf-8") if path.suffix in (".md", ".txt") else f"{path.resolve()}")
