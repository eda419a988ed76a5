"""A stage: a function from a config and input artefacts to one artefact in a folder. And the job that runs it.

The folder of a run holds, beside the artefact itself: run.json (what this run is, written first), checkpoints/,
metrics.jsonl, README.md (the model card) and provenance.json (written last: it marks the artefact as complete).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from launch.config import LIFECYCLE, artefact_paths, identity_dict, operational, to_dict
from launch.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, UserError
from launch.files import (
    append_jsonl,
    artefact_files,
    canonical_json,
    fsync_path,
    hash_files,
    join_hashes,
    lock_folder,
    read_json,
    read_jsonl_log,
    sha256_text,
    write_atomic,
    write_json,
)
from launch.headline import headline
from launch.hub import settle_commits
from launch.provenance import (
    code_version,
    content_of,
    fingerprint_input,
    hardware,
    package_versions,
    peak_memory_mib,
    write_model_card,
)
from launch.ranges import AnyInt, Count, NotNegative, Range
from launch.run_folder import MARKS, MOVED, prepare_folder, return_previous
from launch.stopping import Stopped, listening

if TYPE_CHECKING:
    from launch.checkpoint import Checkpoint
    from launch.runtime import Runtime


@dataclass(kw_only=True)
class StageConfig:
    """What every stage's config has."""

    output_dir: str = operational("")
    """Folder of the run: the artefact, its checkpoints and its records."""
    seed: AnyInt = 0
    """Seed from which every random choice of the stage is derived."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of matrix products; auto takes bf16 where this machine is faster with it."""
    overwrite: bool = operational(False)
    """Start over in a folder that holds another run; what was there is moved to `<folder>.previous`."""
    checkpoint_minutes: NotNegative = operational(10.0)
    """Minutes between checkpoints."""
    checkpoint_steps: Count = operational(0)
    """Steps between checkpoints, besides those by time; 0 for by time alone."""
    keep_checkpoints: Annotated[int, Range(2)] = operational(2)
    """How many checkpoints to keep; at least 2, since the newest may be damaged."""
    watchdog_minutes: Annotated[float, Range(0, 525_600)] = operational(30.0)
    """End the job, with a reason, when no step was made for so long, counted from the first; 0 switches this off."""
    trackers: list[str] = operational([])
    """Trackers besides metrics.jsonl: tensorboard, wandb, trackio (through accelerate)."""


@dataclass(frozen=True)
class LazyRun:
    """The function `run` of a module that is imported when the stage runs: its `--help` and its errors need no torch."""

    module: str

    def __call__(self, config: Any, job: Job) -> dict[str, Any]:
        return importlib.import_module(self.module).run(config, job)


@dataclass(frozen=True)
class Stage:
    """A command of alignkit. `run` returns the summary metrics that go into the model card and the provenance."""

    name: str
    config: type[StageConfig]
    run: Callable[[Any, Job], dict[str, Any]]
    library: str | None = None
    """The model card's `library_name`; None reads it from the model in the folder."""
    task: str | None = None
    """The model card's task; None reads it from the model in the folder."""
    headline: tuple[str, ...] = ()
    """Lines for the user at the end, with `{names}` of the summary in them; see launch/headline.py."""
    version: int = 1
    """Of what it writes: what another version of this stage wrote is not up to date."""

    @property
    def body(self) -> str:
        """The module that `run` lies in."""
        return self.run.module if isinstance(self.run, LazyRun) else self.run.__module__


class Job:
    """One running stage on one rank: its folder, runtime, checkpoints, log, progress and watchdog."""

    def __init__(self, stage: Stage, config: StageConfig, runtime: Any) -> None:
        from launch.checkpoint import CheckpointStore
        from launch.watchdog import Watchdog

        self.stage, self.config, self.runtime = stage, config, runtime
        self.output_dir = Path(config.output_dir)
        # The watchdog first: it clears old heartbeats away, and the ranks meet when they open the store.
        self.watchdog = Watchdog(self.output_dir / ".watchdog", runtime.rank, 60 * config.watchdog_minutes)
        self.checkpoints = CheckpointStore(
            self.output_dir / "checkpoints", runtime, config.keep_checkpoints, self._note_progress
        )
        self._stop_requested = self._polls = False
        self._stop_code = EXIT_RESUMABLE
        self.stopped = False
        """Whether this job ends because it was asked to: threads that still work for it may give up."""
        self._last_save = self._start = time.monotonic()
        record = self.output_dir / "run.json"
        self._seconds_before = float(read_json(record).get("seconds", 0.0)) if record.exists() else 0.0

    @property
    def seconds(self) -> float:
        """Time that the run has taken, over all its sessions (of one that was killed, up to its last checkpoint)."""
        return self._seconds_before + time.monotonic() - self._start

    def record_seconds(self) -> None:
        """Keep the run's time for the next session. For the main rank."""
        path = self.output_dir / "run.json"
        if path.exists():
            write_json(path, {**read_json(path), "seconds": round(self.seconds, 3)})

    def _note_progress(self) -> dict[str, Any]:
        """What a checkpoint must know of the run beside it: how long the log was. On the main rank."""
        self.record_seconds()
        log = self.output_dir / "metrics.jsonl"
        if not log.exists():
            return {"log_bytes": 0}
        fsync_path(log)
        return {"log_bytes": log.stat().st_size}

    def say(self, text: str) -> None:
        """One line for the user, from the main rank."""
        if self.runtime.is_main:
            print(f"{self._head()} {text}", file=sys.stderr, flush=True)

    def _head(self) -> str:
        from launch.progress import label

        return f"[{label() or self.stage.name}]"

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append metrics to metrics.jsonl and the trackers. Names that begin with `perf/` depend on the machine."""
        if self.runtime.is_main:
            append_jsonl(
                self.output_dir / "metrics.jsonl", {"step": step, **{k: _finite(v) for k, v in metrics.items()}}
            )
        if self.config.trackers:
            self.runtime.accelerator.log(metrics, step=step)

    def beat(self, step: int) -> None:
        """Tell the watchdog that a step was made. Its clock begins here, or in `resume`."""
        self.watchdog.beat(step)

    def progress(self, total: float, description: str, done: float = 0) -> contextlib.AbstractContextManager[Any]:
        """A progress display, visible on the main rank."""
        from launch.progress import progress

        return progress(total, description, done, visible=self.runtime.is_main)

    def resume(self) -> Any:
        """The checkpoint to go on from, or None; the log is cut back to it, so that nothing is logged twice.

        Call when all is prepared: the watchdog expects the first step from now on.
        """
        checkpoint = self.checkpoints.latest()
        if self.runtime.is_main and (path := self.output_dir / "metrics.jsonl").exists():
            if checkpoint:
                _cut_log(path, checkpoint.step, checkpoint.meta.get("log_bytes"))
            else:
                write_atomic(path, "")
        if checkpoint:
            self.say(f"resuming after step {checkpoint.step}")
            if reason := _why_inexact(self.runtime, checkpoint):
                self.say(f"the result may differ in its last bits from that of a run which was never stopped: {reason}")
        self.runtime.barrier()
        self.watchdog.beat(checkpoint.step if checkpoint else 0)
        return checkpoint

    def checkpoint_due(self, step: int) -> bool:
        """Whether to save after this step: by steps, by time (the main rank's clock), or because the job must stop."""
        self._polls = True
        by_steps = self.config.checkpoint_steps > 0 and step % self.config.checkpoint_steps == 0
        by_time = self.runtime.is_main and time.monotonic() - self._last_save > 60 * self.config.checkpoint_minutes
        due = self.runtime.any_true(by_steps or by_time or self._stop_requested)
        if due:
            self._last_save = time.monotonic()
        return due

    def stop_if_requested(self, step: int, save: Callable[[], Any] | None = None) -> None:
        """Call after saving: ends the job when it was asked to stop. `save` is called first where step has no checkpoint."""
        self._polls = True
        if not self.runtime.any_true(self._stop_requested):
            return
        if save is not None and self.checkpoints.last_step < step:
            save()
        self.stopped = True
        if not self.checkpoints.last_save_failed:
            self.say(f"stopped after step {step} as asked; run the same command again to resume")
        elif last := self.checkpoints.last_step:
            self.say(
                f"stopped as asked, but step {step} could not be saved; run the same command again to resume after step {last}"
            )
        else:
            self.say(
                f"stopped as asked, but step {step} could not be saved; the same command starts from the beginning"
            )
        raise Stopped(self._stop_code)

    def decide(self, name: str, compute: Callable[[], Any]) -> Any:
        """A choice that this machine made (such as the precision): computed once, kept for every resume."""
        path = self.output_dir / "run.json"
        record = read_json(path)
        if name not in record["choices"]:
            value = self.runtime.broadcast(compute())
            self.runtime.barrier()
            if self.runtime.is_main:
                record["choices"][name] = value
                write_json(path, record)
            self.runtime.barrier()
            return value
        return record["choices"][name]

    @property
    def precision_is_open(self) -> bool:
        """Whether it is to be measured. (On a GPU, and under DeepSpeed, the runtime has chosen at its start.)"""
        runtime = self.runtime
        return self.config.precision == "auto" and runtime.device.type == "cpu" and not runtime.uses_deepspeed

    def settle_precision(self, step: Callable[[], Any]) -> None:
        """Where it is open: fp32 or bf16 autocast, whichever makes `step`, a training step without effect, faster."""
        from launch.runtime import choose_precision

        if self.precision_is_open:
            self.runtime.precision = self.decide("precision", lambda: choose_precision(self.runtime, step, repeats=2))

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM, SIGUSR1 and the first Ctrl-C ask for a checkpoint and an orderly end.

        A job that has not asked yet whether it must stop (many never do: evaluations, reports) has nothing to save
        and ends at once.
        """

        def request(code: int) -> None:
            if not self._stop_requested:
                self._stop_requested, self._stop_code = True, code
                if code == EXIT_INTERRUPTED and self._polls and self.runtime.is_main:
                    # print() must not be called here: the signal may have come in the middle of another one
                    os.write(
                        2, f"{self._head()} ends in order after this step; Ctrl-C again ends it at once\n".encode()
                    )
            if not self._polls:
                raise Stopped(code)

        self.watchdog.start()
        try:
            with listening(request):
                yield
        finally:
            self.watchdog.stop()


def _why_inexact(runtime: Runtime, checkpoint: Checkpoint) -> str:
    """Why a resume is not promised to be exact to the bit; empty where it is. On the CPU it is in bf16, too: measured."""
    before = checkpoint.meta["world"]
    if before != runtime.world:
        return f"{before} processes saved the checkpoint, {runtime.world} go on, and their sums are rounded in another order"
    return "" if runtime.device.type == "cpu" else "a GPU does not make its sums in the same order each time"


def _cut_log(path: Path, step: int, size: int | None) -> None:
    """Drop what was logged after a checkpoint: all beyond `size` bytes. Where that does not fit, rows of later steps."""
    content = path.read_bytes()
    if size is not None and size <= len(content) and (size == 0 or content[size - 1 : size] == b"\n"):
        write_atomic(path, content[:size])
        return
    rows = [row for row in read_jsonl_log(path) if row["step"] <= step]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _finite(value: Any) -> float | str:
    """A number for the log. NaN and infinity become text: JSON has none, and they must not be lost."""
    number = float(value)
    return number if number == number and abs(number) != float("inf") else str(number)


# ---------------------------------------------------------------------------------------------- running


def describe_run(stage: Stage, config: StageConfig) -> dict[str, Any]:
    """What identifies a run: stage, the config that decides the result, and the content of its inputs."""
    inputs = {name: fingerprint_input(name, value) for name, value in artefact_paths(config).items()}
    held = {name: content_of(entry) for name, entry in inputs.items()}
    content: dict[str, Any] = {"stage": stage.name, "config": identity_dict(config), "inputs": held}
    if stage.version > 1:  # the first has none, so that a stage which never changed keeps its identity
        content["version"] = stage.version
    return {"stage": stage.name, "identity": sha256_text(canonical_json(content)), "content": content, "inputs": inputs}


def run_stage(stage: Stage, config: StageConfig) -> dict[str, Any]:
    """Run a stage to its end, or find it complete, or resume it. Returns its provenance. All ranks call this."""
    if not config.output_dir:
        raise UserError("output_dir is missing; add --output_dir FOLDER")
    first = os.environ.get("RANK", "0") == "0"
    run = describe_run(stage, config)
    with lock_folder(Path(config.output_dir)) if first else contextlib.nullcontext():
        complete = prepare_folder(config, run) if first else None
        if complete is not None and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            print(f"[{stage.name}] up to date: {config.output_dir}", file=sys.stderr, flush=True)
            return complete
        try:
            return _run_on_all_ranks(stage, config, run, complete)
        except UserError:
            if first:
                return_previous(Path(config.output_dir))
            raise


def _run_on_all_ranks(
    stage: Stage, config: StageConfig, run: dict[str, Any], complete: dict[str, Any] | None
) -> dict[str, Any]:
    from launch.runtime import running, start_runtime

    folder = Path(config.output_dir)
    # longer than the watchdog's, which names the rank that is stuck; a collective that times out says nothing of it
    timeout_s = 1.5 * 60 * config.watchdog_minutes if config.watchdog_minutes > 0 else 1800.0
    runtime = start_runtime(config.precision, timeout_s, config.trackers, str(folder / "trackers"))
    with running(runtime):
        complete = runtime.broadcast(complete)
        if complete is not None:
            return complete
        if runtime.is_main and not (folder / "run.json").exists():
            write_json(
                folder / "run.json",
                {**run, "config": to_dict(config), "started": time.time(), "seconds": 0.0, "choices": {}},
            )
        runtime.barrier()
        if config.trackers:
            runtime.accelerator.init_trackers(
                stage.name.replace(" ", "-"), config={"config": canonical_json(to_dict(config))}
            )
        job = Job(stage, config, runtime)
        try:
            with job._listening():
                summary = stage.run(config, job)
        except Stopped:
            if not job._polls:
                job.say("stopped as asked, before there was anything to save; run the same command again")
            raise
        except (
            Exception
        ) as error:  # raised again; after work was done, a crash leaves the heartbeats, which name its rank
            if runtime.is_main and (isinstance(error, UserError) or not _works(folder)):
                job.watchdog.remove()
                _forget_unstarted(folder)
            raise
        finally:
            if runtime.is_main:
                with contextlib.suppress(OSError):  # a full disk has been told of
                    job.record_seconds()
        runtime.barrier()
        provenance = _finish(stage, config, run, job, summary) if runtime.is_main else {}
        provenance = runtime.broadcast(provenance)
        if config.trackers:
            runtime.accelerator.end_training()
        for line in headline(stage.headline, provenance["summary"], str(folder)):
            job.say(line)
        if LIFECYCLE not in os.environ:  # which has a line of its own
            job.say(f"done in {job.seconds:.1f} s: {folder}")
        return provenance


def _forget_unstarted(folder: Path) -> None:
    """After a failure before any work was saved: leave nothing, so that the mended command may use the folder."""
    if not _works(folder):
        (folder / "run.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: a stage's own folder; nothing of worth, but not ours to judge
            (folder / "checkpoints").rmdir()


def _works(folder: Path) -> list[Path]:
    """The files of a run's folder that hold work, and not only say whose it is."""
    marks = (*MARKS, "run.json", ".recipe.json")
    within = (p for p in folder.rglob("*") if p.is_file())
    return [p for p in within if p.name not in marks and p.parent.name != ".watchdog"]


def _finish(
    stage: Stage, config: StageConfig, run: dict[str, Any], job: Job, summary: dict[str, Any]
) -> dict[str, Any]:
    folder = job.output_dir
    record = read_json(folder / "run.json")
    files, hashes = artefact_files(folder), hash_files(folder)
    for path in {folder / name for name in files} | {(folder / name).parent for name in files}:
        fsync_path(path)  # the provenance vouches for them: it must not outlive them in a power cut
    provenance = {
        "schema": 1,
        "stage": stage.name,
        "config": to_dict(config),
        "choices": record["choices"],
        "identity": run["identity"],
        "version": stage.version,
        "inputs": settle_commits(run["inputs"], record["inputs"]),
        "content_sha256": join_hashes(hashes),
        "files": files,
        "files_sha256": hashes,
        "summary": summary,
        "started": record["started"],
        "seconds": round(job.seconds, 3),
        "world": job.runtime.world,
        "zero_stage": job.runtime.zero_stage,
        "precision": job.runtime.precision,
        "versions": package_versions(),
        "code": code_version(),
        "hardware": hardware(),
        "peak_memory_mib": round(peak_memory_mib(), 1),
    }
    write_model_card(folder, stage.name, summary, provenance, stage.library, stage.task)
    write_json(folder / "provenance.json", provenance)
    (folder / MOVED).unlink(missing_ok=True)
    job.watchdog.remove()
    return provenance
