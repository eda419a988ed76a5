"""`alignkit run RECIPE --output_dir DIR`: the stages of a lifecycle in order.

A recipe names its stages; a stage names its command and its config, and refers to the artefact of an earlier stage
as `@stage` (or `@stage/file`). Stages whose config and inputs are unchanged are skipped without loading torch, the
one that was interrupted is resumed. Each stage runs in a process of its own, forked from a server that has
imported the libraries once: the import costs more than some stages.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.cli import COMMANDS, find_command
from launch.config import find_recipe, merge, parse_overrides, read_yaml
from launch.errors import UserError, nearest
from launch.files import canonical_json, read_json, sha256_text, write_json
from launch.provenance import fingerprint_input, package_versions

STAGE_KEYS = ("command", "launcher", "config")
RECIPE_KEYS = ("name", "description", "stages", "show")
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

    @property
    def fingerprint(self) -> str:
        """Hash of what the recipe says of this stage, and of our version."""
        content = [self.command, self.config, package_versions().get("alignkit")]
        return sha256_text(canonical_json(content))


def main(arguments: Sequence[str]) -> None:
    """Entry point of `alignkit run`."""
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print("alignkit run RECIPE --output_dir DIR [--stages a,b] [--STAGE.key value ...]\n\n" + (__doc__ or ""))
        return
    overrides = parse_overrides(words[1:])
    output_dir = overrides.pop("output_dir", None)
    if not output_dir:
        raise UserError("alignkit run: output_dir is missing; add --output_dir FOLDER")
    chosen = [s for s in str(overrides.pop("stages", "")).split(",") if s]
    recipe = find_recipe(words[0])
    plan = plan_stages(read_yaml(recipe), str(recipe), Path(output_dir), overrides)
    unknown = [name for name in chosen if name not in {stage.name for stage in plan}]
    if unknown:
        raise UserError(f"--stages: no stage '{unknown[0]}' in {recipe}{nearest(unknown[0], [s.name for s in plan])}")
    try:
        run_plan([s for s in plan if not chosen or s.name in chosen], Path(output_dir))
    except StageFailed as failure:
        sys.exit(failure.code)
    show_results(read_yaml(recipe), Path(output_dir))


def plan_stages(recipe: dict[str, Any], where: str, root: Path, overrides: dict[str, Any]) -> list[PlannedStage]:
    """The stages of a recipe in order, checked: known keys and commands, references to earlier stages alone."""
    for key in recipe:
        if key not in RECIPE_KEYS:
            raise UserError(f"{where}: unknown key '{key}'{nearest(key, RECIPE_KEYS)}")
    stages = recipe.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{where}: 'stages' is missing or empty; write `stages:` with one entry for each stage")
    for name in overrides:
        if name not in stages:
            raise UserError(f"command line: no stage '{name}' in {where}{nearest(name, stages)}")
    plan: list[PlannedStage] = []
    for name, entry in stages.items():
        if not isinstance(entry, dict) or "command" not in entry:
            raise UserError(f"{where}: stages.{name}: 'command' is missing; write e.g. `command: sft`")
        if wrong := [key for key in entry if key not in STAGE_KEYS]:
            raise UserError(f"{where}: stages.{name}: unknown key '{wrong[0]}'{nearest(wrong[0], STAGE_KEYS)}")
        command = str(entry["command"])
        if command not in COMMANDS or COMMANDS[command][1] != "STAGE":
            raise UserError(f"{where}: stages.{name}: unknown command '{command}'{nearest(command, COMMANDS)}")
        known = {stage.name for stage in plan}
        config = merge(entry.get("config") or {}, overrides.get(name, {}))
        resolved = _resolve(config, root, known, f"{where}: stages.{name}")
        plan.append(PlannedStage(name, command, root / name, str(entry.get("launcher") or "").split(), resolved))
    return plan


def _resolve(value: Any, root: Path, known: set[str], where: str) -> Any:
    """Replace `@stage/...` by the path of that stage's artefact."""
    if isinstance(value, dict):
        return {key: _resolve(item, root, known, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, root, known, where) for item in value]
    if isinstance(value, str) and value.startswith("@"):
        name = value[1:].split("/")[0].split("::")[0]
        if name not in known:
            raise UserError(f"{where}: '{value}' refers to a stage that does not come before it{nearest(name, known)}")
        return str(root / value[1:])
    return value


# ---------------------------------------------------------------------------------------------- running


def is_up_to_date(stage: PlannedStage) -> bool:
    """Whether a stage is complete, its recipe entry unchanged and its inputs the same; no torch is needed to tell."""
    try:
        provenance = read_json(stage.folder / "provenance.json")
        if read_json(stage.folder / ".recipe.json")["fingerprint"] != stage.fingerprint:
            return False
        return all(
            fingerprint_input(n, i.get("path") or i["source"])["sha256"] == i["sha256"]
            for n, i in provenance["inputs"].items()
        )
    except (UserError, KeyError, TypeError):
        return False


def run_plan(plan: Sequence[PlannedStage], root: Path) -> None:
    """Run the stages that are not up to date; StageFailed when one ends with another code than 0."""
    root.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(plan, 1):
        head = f"[{number}/{len(plan)}] {stage.name}"
        if is_up_to_date(stage):
            print(f"{head}: up to date", file=sys.stderr, flush=True)
            continue
        print(f"{head}: alignkit {stage.command}", file=sys.stderr, flush=True)
        start = time.monotonic()
        code = _launch(stage) if stage.launcher else _fork(stage)
        if code != 0:
            raise StageFailed(code)
        write_json(stage.folder / ".recipe.json", {"fingerprint": stage.fingerprint})
        print(f"{head}: done in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def _arguments(stage: PlannedStage) -> list[str]:
    """The command line of a stage: its recipe as a file beside the others, `overwrite` since the lifecycle owns the folder."""
    recipe = stage.folder.parent / ".recipes" / f"{stage.name}.yaml"
    write_json(recipe, {**stage.config, "output_dir": str(stage.folder), "overwrite": True})  # JSON is YAML
    return [*stage.command.split(), "--config", str(recipe)]


def _fork(stage: PlannedStage) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    child = context.Process(target=_run_in_child, args=(_arguments(stage),), name=stage.name)
    child.start()
    try:
        child.join()
    except KeyboardInterrupt:
        child.join()
        raise
    code = child.exitcode or 0
    if code < 0:
        print(
            f"alignkit: stage {stage.name} was killed by signal {-code}; run the same command again to resume",
            file=sys.stderr,
        )
    return code if code >= 0 else 128 - code


def _run_in_child(words: list[str]) -> None:
    from launch.cli import run_command
    from launch.entry import guarded
    from launch.processes import die_with_parent

    die_with_parent()
    sys.exit(guarded(lambda: run_command(words)))


def _launch(stage: PlannedStage) -> int:
    """A stage on several processes: exactly what a user would type."""
    from launch.processes import die_with_parent, find_accelerate

    _, arguments = find_command(_arguments(stage))
    module = COMMANDS[stage.command][0]
    return subprocess.run(
        [find_accelerate(), "launch", *stage.launcher, "-m", module, *arguments], preexec_fn=die_with_parent
    ).returncode


def show_results(recipe: dict[str, Any], root: Path) -> None:
    """Print the text files, and the paths of the others, that the recipe asks to show at the end."""
    for entry in recipe.get("show") or []:
        path = root / str(entry).removeprefix("@")
        if not path.exists():
            continue
        print(path.read_text(encoding="utf-8") if path.suffix in (".md", ".txt") else f"{path.resolve()}")
