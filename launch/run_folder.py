"""The folder of a run before it starts: whose it is, whether it is complete, and how another run is moved out of it.

`--overwrite` moves the other run to `<folder>.previous`, entry by entry, and back again when the new one ends by a
mistake of the user before it saved anything. A kill in between leaves `.moving` or `.returning` in the folder, which
say that the run lies in both folders: the next start moves the rest, and loses nothing. A complete run in
`<folder>.previous` is never replaced by one that was not finished, and what no run of ours made is never removed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.config import artefact_paths
from launch.errors import UserError
from launch.files import changed_file, clear_asides, fsync_path, is_run, read_json
from launch.hub import find_moved
from launch.provenance import check_unchanged

if TYPE_CHECKING:
    from launch.stage import StageConfig

MOVING = ".moving"
"""Lies in a run's folder while its content is moved to `<folder>.previous`."""
MOVED = ".moved"
"""Lies in a run's folder until it is complete: `<folder>.previous` holds what was here before."""
RETURNING = ".returning"
"""Lies in a run's folder while the content of `<folder>.previous` is moved back."""
MARKS = (".lock", MOVING, MOVED, RETURNING)


def prepare_folder(config: StageConfig, run: dict[str, Any]) -> dict[str, Any] | None:
    """Check output folder and inputs before anything is written. Returns the provenance of a run that is complete."""
    folder = Path(config.output_dir)
    _finish_what_was_cut_short(folder)
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
    clear_asides(folder)
    return None


def return_previous(folder: Path) -> None:
    """Move back what was moved aside for a run that left nothing, not even its run.json."""
    if (folder / MOVED).exists() and not (folder / "run.json").exists():
        _clear(folder)
        os.rename(folder / MOVED, folder / RETURNING)
        _finish_return(folder)


def _finish_what_was_cut_short(folder: Path) -> None:
    """Go on where a kill ended a move."""
    for mark, direction, finish in ((MOVING, "to", _finish_move), (RETURNING, "back from", _finish_return)):
        if (folder / mark).exists():
            print(
                f"alignkit: {folder}: finishing the move {direction} {_previous(folder)} that was cut short",
                file=sys.stderr,
                flush=True,
            )
            finish(folder)


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
    ours = (*MARKS, ".recipe.json", ".watchdog", ".watchdog.gone")
    for path in sorted(folder.iterdir()):
        cut = path.match(".run.json.*.tmp")  # a kill while it was written
        if path.name not in ours and not cut and (not path.is_dir() or any(not p.is_dir() for p in path.rglob("*"))):
            return path.name
    return None


def _move_aside(folder: Path) -> None:
    """Keep what an overwritten run made, in `<folder>.previous` (one generation). `_finish_move` goes on after a kill.

    What was not finished goes, rather than take the place of a complete run there.
    """
    previous = _previous(folder)
    _check_ours(previous)
    if (previous / "provenance.json").exists() and not (folder / "provenance.json").exists():
        _clear(folder)
        return
    previous.mkdir(exist_ok=True)
    _clear(previous)
    (folder / MOVING).touch()  # from here on `previous` holds what is being moved, and is not to be removed
    fsync_path(folder)
    _finish_move(folder)


def _check_ours(previous: Path) -> None:
    """UserError when `<folder>.previous` is, or holds, what no run of ours left there."""
    if not previous.exists() and not previous.is_symlink():
        return
    plain = previous.is_dir() and not previous.is_symlink()
    if plain and (is_run(previous) or all(path.name in MARKS for path in previous.iterdir())):
        return
    raise UserError(
        f"output_dir: {previous}, where --overwrite would move the run that is here, is not of an alignkit run; rename it or choose another --output_dir"
    )


def _clear(folder: Path) -> None:
    """Remove a run: the mark of a complete artefact first, run.json, which says whose it is, last."""
    for path in _in_order(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _finish_move(folder: Path) -> None:
    """Move what is still there: the mark of a complete artefact first, run.json, which says whose it is, last."""
    _previous(folder).mkdir(exist_ok=True)
    _carry(_in_order(folder), folder, _previous(folder))
    os.rename(folder / MOVING, folder / MOVED)


def _finish_return(folder: Path) -> None:
    """Move back what is still in `<folder>.previous`, run.json first and the mark of a complete artefact last."""
    previous = _previous(folder)
    if previous.exists():
        _carry(_in_order(previous)[::-1], previous, folder)
        shutil.rmtree(previous)  # no more than a lock
    (folder / RETURNING).unlink()


def _carry(paths: list[Path], source: Path, target: Path) -> None:
    for path in paths:
        os.rename(path, target / path.name)
    fsync_path(target)
    fsync_path(source)


def _in_order(folder: Path) -> list[Path]:
    """What a run left in a folder: provenance.json first, run.json last."""
    order = {"provenance.json": 0, "run.json": 2}
    return sorted((p for p in folder.iterdir() if p.name not in MARKS), key=lambda p: (order.get(p.name, 1), p.name))


def _previous(folder: Path) -> Path:
    return folder.with_name(folder.name + ".previous")


def _first_difference(known: dict[str, Any], run: dict[str, Any]) -> str:
    old, new = known["content"], run["content"]
    if old["stage"] != new["stage"]:
        return f"of `{old['stage']}`, not `{new['stage']}`"
    if old.get("version", 1) != new.get("version", 1):
        return "of another version of alignkit, whose results are written otherwise"
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
