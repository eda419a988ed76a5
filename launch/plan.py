"""A lifecycle's recipe, checked: its stages in order, with references to earlier ones resolved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.cli import COMMANDS, NOT_STAGES, config_class
from launch.config import build, merge
from launch.errors import UserError, nearest
from launch.files import canonical_json, read_json, sha256_text
from launch.provenance import package_versions

STAGE_KEYS = ("command", "launcher", "alone", "config")
REPORT = "report"
RECIPE_KEYS = ("name", "description", "jobs", "stages", "show")
SEED_STRIDE = 1000
"""Seeds of one stage in two runs of a lifecycle are so far apart per `--seed`: recipes tell stages apart by small ones."""


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


def plan_stages(
    recipe: dict[str, Any], where: str, root: Path, overrides: dict[str, Any], seed: int = 0
) -> list[PlannedStage]:
    """The stages of a recipe in order, checked: known keys and commands, references to earlier stages alone.

    `seed` moves the seeds of all stages that `overrides` give none, by SEED_STRIDE for each step from 0.
    """
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
        here = f"{where}: stages.{name}"
        plan.append(_plan_stage(name, _reseeded(entry, seed), here, root, overrides.get(name, {}), known))
    return plan


def check_configs(plan: Sequence[PlannedStage]) -> None:
    """UserError for the first key or value that a stage would refuse: before the first one starts, not when it is reached.

    Those with which a stage was complete are known to be good: the modules of evaluations take torch to import.
    """
    for stage in plan:
        if not is_entry_unchanged(stage):
            build(config_class(stage.command), {**stage.config, "output_dir": str(stage.folder)}, stage.origin)


def is_entry_unchanged(stage: PlannedStage) -> bool:
    """Whether the recipe says of a stage what it said when the stage was last complete."""
    record = stage.folder / ".recipe.json"
    return record.is_file() and read_json(record).get("fingerprint") == stage.fingerprint


def _reseeded(entry: Any, seed: int) -> Any:
    """A stage's entry with its seed moved; one that is faulty is left as it is, to be named where it is read."""
    config = (entry.get("config") or {}) if isinstance(entry, dict) else None
    if seed == 0 or not isinstance(config, dict) or not isinstance(own := config.get("seed", 0), int):
        return entry
    return {**entry, "config": {**config, "seed": own + SEED_STRIDE * seed}}


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
    if command == REPORT:
        config = {"show": False, **config}  # the lifecycle shows it at its end: once, and also when it was up to date
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
