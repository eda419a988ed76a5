"""The folder of a run before it starts: whose it is, whether it is complete, and how another run is moved out of it.

`--overwrite` moves the other run to `<folder>.previous`, entry by entry. A kill in between leaves `.moving` in the
folder, which says that `<folder>.previous` holds a part of it: the next start moves the rest, and loses nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.config import artefact_paths
from launch.errors import UserError
from launch.files import changed_file, fsync_path, read_json
from launch.hub import find_moved
from launch.provenance import check_unchanged

if TYPE_CHECKING:
    from launch.stage import StageConfig

MOVING = ".moving"
"""Lies in a run's folder while its content is moved to `<folder>.previous`."""


def prepare_folder(config: StageConfig, run: dict[str, Any]) -> dict[str, Any] | None:
    """Check output folder and inputs before anything is written. Returns the provenance of a run that is complete."""
    folder = Path(config.output_dir)
    if (folder / MOVING).exists():
        print(
            f"alignkit: {folder}: finishing the move to {_previous(folder)} that was cut short",
            file=sys.stderr,
            flush=True,
        )
        _finish_move(folder)
    known = read_json(folder / "run.json") if (folder / "run.json").exists() else None
    moved = find_moved(known["inputs"], run["inputs"]) if known else None
    same = known is not None and known["identity"] == run["identity"] and not moved
    if same and (complete := _complete_artefact(folder)):
        return complete
    if known is None and (stranger := _find_stranger(folder)):
        raise UserError(
            f"output_dir: {folder} holds files that are not of an alignkit run ({stranger}), which are not ours to move; choose another --output_dir"
        )
    if known and not same and not config.overwrite:
        raise UserError(
            f"output_dir: {folder} holds another run ({moved or _first_difference(known, run)}); choose another --output_dir, or --overwrite to start over there"
        )
    for name, value in artefact_paths(config).items():
        check_unchanged(name, value)
    if same:
        (folder / "provenance.json").unlink(missing_ok=True)
    elif known:
        _move_aside(folder)
    return None


def _complete_artefact(folder: Path) -> dict[str, Any] | None:
    """The provenance of a run that is complete; one whose files are not what it wrote is made again."""
    path = folder / "provenance.json"
    provenance = read_json(path) if path.exists() else None
    if provenance and (name := changed_file(folder, provenance)):
        print(
            f"alignkit: warning: {folder / name} is gone or has changed since the run was complete; it is made again",
            file=sys.stderr,
            flush=True,
        )
        return None
    return provenance


def _find_stranger(folder: Path) -> str | None:
    """A file or folder that no run of ours left in a folder without run.json; empty folders are nothing to lose."""
    ours = (".lock", ".recipe.json", ".watchdog")
    for path in sorted(folder.iterdir()):
        cut = path.match(".run.json.*.tmp")  # a kill while it was written
        if path.name not in ours and not cut and (not path.is_dir() or any(not p.is_dir() for p in path.rglob("*"))):
            return path.name
    return None


def _move_aside(folder: Path) -> None:
    """Keep what an overwritten run made, in `<folder>.previous` (one generation). `_finish_move` goes on after a kill."""
    previous = _previous(folder)
    if previous.exists():
        shutil.rmtree(previous)
    previous.mkdir()
    (folder / MOVING).touch()  # from here on `previous` holds what is being moved, and is not to be removed
    fsync_path(folder)
    _finish_move(folder)


def _finish_move(folder: Path) -> None:
    """Move what is still there: the mark of a complete artefact first, run.json, which says whose it is, last."""
    previous = _previous(folder)
    previous.mkdir(exist_ok=True)
    order = {"provenance.json": 0, "run.json": 2}
    for path in sorted(folder.iterdir(), key=lambda p: order.get(p.name, 1)):
        if path.name not in (".lock", MOVING):
            os.rename(path, previous / path.name)
    fsync_path(previous)
    fsync_path(folder)
    (folder / MOVING).unlink()


def _previous(folder: Path) -> Path:
    return folder.with_name(folder.name + ".previous")


def _first_difference(known: dict[str, Any], run: dict[str, Any]) -> str:
    old, new = known["content"], run["content"]
    if old["stage"] != new["stage"]:
        return f"of `{old['stage']}`, not `{new['stage']}`"
    for part in ("config", "inputs"):
        before, now = _flatten(old[part]), _flatten(new[part])
        for key in sorted(set(before) | set(now)):
            if before.get(key) != now.get(key):
                changed = f"{key} was {before.get(key)!r}, is now {now.get(key)!r}"
                return f"{key} differs" if part == "inputs" else changed
    return "of another version"


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted names."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        leaves.update(_flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value})
    return leaves
