"""`alignkit run RECIPE --output_dir DIR`: the stages of a lifecycle in order.

A recipe names its stages; a stage names its command and its config, and refers to the artefact of an earlier stage
as `@stage` (or `@stage/file`). Stages whose config and inputs are unchanged are skipped without loading torch, the
one that was interrupted is resumed. Each stage runs in a process of its own, forked from a server that has
imported the libraries once: the import costs more than some stages. With `jobs: N` (or `--jobs N`) up to N stages
that do not need one another run at a time, each on its share of the cores; an entry with `alone: true` gets the whole
machine. SIGTERM, SIGUSR1 and Ctrl-C stop the stages that run, which save, and no further one is started; the code is
75 then, or 130 by Ctrl-C. A second Ctrl-C ends everything at once.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.cli import COMMANDS, NOT_STAGES, find_command
from launch.config import LIFECYCLE, find_recipe, merge, parse_overrides, read_yaml
from launch.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, REASON_FILE, UserError, nearest
from launch.files import canonical_json, changed_file, damaged_file, read_json, sha256_text, write_json
from launch.progress import LABEL
from launch.provenance import fingerprint_input, package_versions
from launch.stopping import listening

STAGE_KEYS = ("command", "launcher", "alone", "config")
RECIPE_KEYS = ("name", "description", "jobs", "stages", "show")
PRELOAD = ["launch.follow_parent", "torch", "transformers", "accelerate", "datasets", "launch.stage"]


class StageFailed(Exception):
    """A stage ended with another code than 0; it has said why itself."""

    def __init__(self, code: int) -> None:
        self.code = code


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a recipe with its references resolved."""

    name: str
    command: str
    folder: Path
    launcher: list[str]
    """Arguments of `accelerate launch`; empty for a single process."""
    config: dict[str, Any]
    origin: str
    """Where the user wrote the config."""
    needs: frozenset[str] = frozenset()
    """The stages that the config refers to."""
    alone: bool = False
    """Nothing runs beside it, and it has all cores."""

    @property
    def fingerprint(self) -> str:
        """Hash of what the recipe says of this stage, and of our version."""
        content = [self.command, self.config, package_versions().get("alignkit")]
        return sha256_text(canonical_json(content))


def main(arguments: Sequence[str]) -> None:
    """Entry point of `alignkit run`."""
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(
            "alignkit run RECIPE --output_dir DIR [--stages a,b] [--jobs N] [--STAGE.key value ...]\n\n"
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
    plan = plan_stages(content, str(recipe), Path(output_dir), overrides)
    unknown = [name for name in chosen if name not in {stage.name for stage in plan}]
    if unknown:
        raise UserError(f"--stages: no stage '{unknown[0]}' in {recipe}{nearest(unknown[0], [s.name for s in plan])}")
    try:
        run_plan([s for s in plan if not chosen or s.name in chosen], Path(output_dir), jobs)
    except StageFailed as failure:
        sys.exit(failure.code)
    show_results(content, Path(output_dir))


def _number_of_jobs(value: Any, where: str) -> int:
    if str(value).isdecimal() and int(value) > 0:
        return int(value)
    raise UserError(f"{where}: jobs: '{value}' is not a positive integer; say how many stages may run at a time")


def plan_stages(recipe: dict[str, Any], where: str, root: Path, overrides: dict[str, Any]) -> list[PlannedStage]:
    """The stages of a recipe in order, checked: known keys and commands, references to earlier stages alone."""
    for key in recipe:
        if key not in RECIPE_KEYS:
            raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), RECIPE_KEYS)}")
    stages, show = recipe.get("stages"), recipe.get("show") or []
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{where}: 'stages' is missing or empty; write `stages:` with one entry for each stage")
    if not isinstance(show, list):
        raise UserError(f"{where}: show: {show!r} is not a list; write e.g. `show: [stage/README.md]`")
    for name in stages:
        if not isinstance(name, str):
            raise UserError(f"{where}: stages: the name {name!r} is not text; put it in quotation marks")
    for name, changes in overrides.items():
        if name not in stages:
            raise UserError(f"command line: no stage '{name}' in {where}{nearest(name, stages)}")
        if not isinstance(changes, dict):
            raise UserError(f"command line: --{name}: '{changes}' is for no key of the stage; write --{name}.KEY VALUE")
    plan: list[PlannedStage] = []
    for name, entry in stages.items():
        known = {stage.name for stage in plan}
        plan.append(_plan_stage(name, entry, f"{where}: stages.{name}", root, overrides.get(name, {}), known))
    return plan


def _plan_stage(
    name: str, entry: Any, here: str, root: Path, overrides: dict[str, Any], known: set[str]
) -> PlannedStage:
    """One entry of a recipe, checked."""
    if not isinstance(entry, dict) or "command" not in entry:
        raise UserError(f"{here}: 'command' is missing; write e.g. `command: sft`")
    if wrong := [str(key) for key in entry if key not in STAGE_KEYS]:
        raise UserError(f"{here}: unknown key '{wrong[0]}'{nearest(wrong[0], STAGE_KEYS)}")
    command, launcher, alone = str(entry["command"]), entry.get("launcher") or "", entry.get("alone", False)
    if command not in COMMANDS or command in NOT_STAGES:
        stages_only = [c for c in COMMANDS if c not in NOT_STAGES]
        raise UserError(f"{here}: unknown command '{command}'{nearest(command, stages_only)}")
    if not isinstance(config := entry.get("config") or {}, dict):
        raise UserError(
            f"{here}: config: {config!r} is not a mapping of keys to values; write e.g. `config: {{seed: 1}}`"
        )
    if not isinstance(launcher, str):
        raise UserError(f"{here}: launcher: {launcher!r} is not text; give the words after `accelerate launch`")
    if not isinstance(alone, bool):
        raise UserError(f"{here}: alone: '{alone}' is not true or false")
    config = merge(config, overrides)
    needs = frozenset(_find_reference(text, known, at) for at, text in _references(config, here))
    origin = f"{here}.config{' and command line' if overrides else ''}"
    return PlannedStage(name, command, root / name, launcher.split(), _resolve(config, root), origin, needs, alone)


def _references(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """(where, text) of each `@stage/...` in a config."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _references(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _references(item, where)
    elif isinstance(value, str) and value.startswith("@"):
        yield where, value


def _find_reference(text: str, known: set[str], where: str) -> str:
    name = text[1:].split("/")[0].split("::")[0]
    if name not in known:
        raise UserError(f"{where}: '{text}' refers to a stage that does not come before it{nearest(name, known)}")
    return name


def _resolve(value: Any, root: Path) -> Any:
    """Replace `@stage/...` by the path of that stage's artefact; what JSON lacks (dates, NaN) becomes text."""
    if isinstance(value, dict):
        return {str(key): _resolve(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, root) for item in value]
    if isinstance(value, str) and value.startswith("@"):
        return str(root / value[1:])
    plain = value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)


# ---------------------------------------------------------------------------------------------- running


def is_up_to_date(stage: PlannedStage) -> bool:
    """Whether a stage is complete, its recipe entry unchanged and its inputs the same; no torch is needed to tell.

    Its own files are looked at by name and size. What they hold is read when another stage is about to use them.
    """
    try:
        provenance = read_json(stage.folder / "provenance.json")
        if read_json(stage.folder / ".recipe.json")["fingerprint"] != stage.fingerprint:
            return False
        if damaged_file(stage.folder, provenance):
            return False
        return all(
            fingerprint_input(n, i.get("path") or i["source"])["sha256"] == i["sha256"]
            for n, i in provenance["inputs"].items()
        )
    except (UserError, KeyError, TypeError):
        return False


def run_plan(plan: Sequence[PlannedStage], root: Path, jobs: int = 1) -> None:
    """Run the stages that are not up to date, up to `jobs` at a time, each after the stages that it needs.

    Of those that could start the recipe's first comes first: one that wants to be alone holds back those after it.

    StageFailed when one ends with another code than 0, or when we are asked to stop: no further stage is started,
    those that run are waited for.
    """
    root.mkdir(parents=True, exist_ok=True)
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
            started = RunningStage(stage, self._head(stage), _environment_of(stage, self.jobs))
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
        self.stop_code = self.stop_code or code
        for started in list(self.running.values()):
            started.stop()


def _environment_of(stage: PlannedStage, jobs: int) -> dict[str, str]:
    """What its messages call the recipe; where others run beside it, its share of the cores and a name for its lines."""
    if jobs == 1 or stage.alone:
        return {LIFECYCLE: stage.origin, REASON_FILE: str(_reason_file(stage))}
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // jobs))
    return {**_environment_of(stage, 1), "OMP_NUM_THREADS": threads, LABEL: stage.name}


def _reason_file(stage: PlannedStage) -> Path:
    return stage.folder.parent / ".recipes" / f"{stage.name}.reason"


class RunningStage:
    """A stage in a process of its own."""

    def __init__(self, stage: PlannedStage, head: str, environment: dict[str, str]) -> None:
        print(f"{head}: alignkit {stage.command}", file=sys.stderr, flush=True)
        self.stage, self.head, self.start = stage, head, time.monotonic()
        self.failure = ""
        """Why it failed, in one line."""
        _reason_file(stage).unlink(missing_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        words = _launched(stage) if stage.launcher else _arguments(stage)
        target = _become if stage.launcher else _run_in_child
        self.process = context.Process(target=target, args=(words, environment), name=stage.name)
        self.process.start()

    def stop(self) -> None:
        """Ask it to save and to end. Under a launcher its ranks are asked: the launcher would give them half a minute."""
        pid = self.process.pid
        if pid is not None:
            for number in (_children(pid) or [pid]) if self.stage.launcher else [pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)

    def finish(self, stop_code: int) -> int:
        """Wait for its end, record it, say it; its exit code as a shell would give it.

        `stop_code` (0 if it was not asked to stop) is what one that was stopped counts as.
        """
        self.process.join()
        code = self.process.exitcode or 0
        if code == 0:
            write_json(self.stage.folder / ".recipe.json", {"fingerprint": self.stage.fingerprint})
            print(f"{self.head}: done in {time.monotonic() - self.start:.1f} s", file=sys.stderr, flush=True)
        # It may not have listened yet; and a launcher turns the code of its ranks into 1.
        stopped = (EXIT_RESUMABLE, EXIT_INTERRUPTED, -signal.SIGTERM, *([1] if self.stage.launcher else []))
        if stop_code and code in stopped:
            return stop_code
        if code != 0:
            self.failure = f"{self.head}: failed: {self._reason(code)}"
            print(self.failure, file=sys.stderr, flush=True)
        return code if code >= 0 else 128 - code

    def _reason(self, code: int) -> str:
        with contextlib.suppress(OSError):
            return _reason_file(self.stage).read_text(encoding="utf-8")
        what = f"killed by signal {-code}" if code < 0 else f"it ended with code {code}, see above"
        return f"{what}; run the same command again to resume"


def _children(pid: int) -> list[int]:
    """The processes that a process has started (Linux)."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def _arguments(stage: PlannedStage) -> list[str]:
    """The command line of a stage: its recipe as a file beside the others, `overwrite` since the lifecycle owns the folder."""
    recipe = stage.folder.parent / ".recipes" / f"{stage.name}.yaml"
    write_json(recipe, {**stage.config, "output_dir": str(stage.folder), "overwrite": True})  # JSON is YAML
    return [*stage.command.split(), "--config", str(recipe)]


def _launched(stage: PlannedStage) -> list[str]:
    """A stage on several processes: exactly what a user would type."""
    from launch.processes import find_accelerate

    _, arguments = find_command(_arguments(stage))
    return [find_accelerate(), "launch", *stage.launcher, "-m", COMMANDS[stage.command][0], *arguments]


def _run_in_child(words: list[str], environment: dict[str, str]) -> None:
    from launch.cli import run_command
    from launch.entry import guarded
    from launch.processes import die_with_parent

    die_with_parent()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # torch was imported before, by the fork server
    sys.exit(guarded(lambda: run_command(words)))


def _become(words: list[str], environment: dict[str, str]) -> None:
    from launch.processes import die_with_parent

    die_with_parent()  # lasts across exec
    # Out of the terminal's group: by Ctrl-C the launcher would give its ranks half a minute. We ask them ourselves.
    os.setpgid(0, 0)
    os.execve(words[0], words, {**os.environ, **environment})


def show_results(recipe: dict[str, Any], root: Path) -> None:
    """Print the text files, and the paths of the others, that the recipe asks to show at the end."""
    for entry in recipe.get("show") or []:
        path = root / str(entry).removeprefix("@")
        if not path.exists():
            continue
        print(path.read_text(encoding="utf-8") if path.suffix in (".md", ".txt") else f"{path.resolve()}")
