"""Files that are whole or absent: atomic writes, content hashes, append-only logs, folder locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from launch.errors import UserError


def fsync_path(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ASIDE = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of files that are written aside."""


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file aside, fsync it and rename it: readers see the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(aside, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except BaseException as error:
        _name_file(error, path)
        aside.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def _name_file(error: BaseException, path: str | Path) -> None:
    """Say of a failed write which file it was: the system does not, and a file aside means nothing to a user."""
    if isinstance(error, OSError):
        error.filename = str(path)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has none."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path, remedy: str = "restore the file or remove it") -> Any:
    """The JSON in a file; UserError names the file, the line and the remedy."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from None


def canonical_json(value: Any) -> str:
    """JSON text that is equal for equal values: the base of configuration hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=str)


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# What a run writes beside its artefact; no part of the artefact's content.
SIDE_FILES = {
    "provenance.json",
    "run.json",
    "metrics.jsonl",
    "evaluations.jsonl",
    "evaluation_samples.jsonl",
    "alarms.jsonl",
    "README.md",
}
SCORED = "scored"
"""Folder of the samples that an evaluation has scored so far."""
SIDE_FOLDERS = {"checkpoints", "rollouts", "trackers", SCORED}


def sha256_tree(root: str | Path, with_runs: bool = False) -> str:
    """Content hash of an artefact: of a file, or of every file of a folder by name, less what runs write beside it."""
    root = Path(root)
    return sha256_file(root) if root.is_file() else join_hashes(hash_files(root, with_runs))


def hash_files(root: Path, with_runs: bool = False) -> dict[str, str]:
    """Name -> SHA-256 of the files of an artefact's folder."""
    return {name: sha256_file(root / name) for name in artefact_files(root, with_runs)}


def join_hashes(hashes: dict[str, str]) -> str:
    """The content hash of a folder from those of its files, in the order of `hash_files`."""
    return sha256_text("\n".join(f"{value}  {name}" for name, value in hashes.items()))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run of alignkit, finished or not."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"stage", "identity"} <= set(record)


def files_without_runs(root: Path) -> list[Path]:
    """All below a folder in name order, but for the folders of runs: who writes a run among the data does not read it."""
    runs = {path.parent for path in root.rglob("run.json") if path.parent != root and is_run(path.parent)}
    return [path for path in sorted(root.rglob("*")) if runs.isdisjoint((path, *path.parents))]


def artefact_files(root: Path, with_runs: bool = False) -> dict[str, int]:
    """Name -> bytes of the files of an artefact's folder, less what runs write beside it and, unless asked for, runs in it."""
    found = {}
    for path in sorted(root.rglob("*")) if with_runs else files_without_runs(root):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        beside = relative.parts[0] in SIDE_FOLDERS or (len(relative.parts) == 1 and relative.name in SIDE_FILES)
        if not hidden and not beside and path.is_file():
            found[relative.as_posix()] = path.stat().st_size
    return found


def clear_asides(root: Path) -> None:
    """Remove what a kill in the middle of `write_atomic` left in a run's folder, at any depth but for runs inside of it."""
    for path in files_without_runs(root):
        if _ASIDE.fullmatch(path.name) and path.is_file():
            path.unlink()


def damaged_file(root: Path, provenance: dict[str, Any]) -> str | None:
    """The first file of a complete artefact that is gone or cut, by name and size: cheap, nothing is hashed."""
    for name, size in provenance.get("files", {}).items():
        path = root / name
        if not path.is_file() or path.stat().st_size != size:
            return name
    return None


def changed_file(root: Path, provenance: dict[str, Any], below: str = "") -> str | None:
    """The first file of a complete artefact that is gone, cut or has other content: every file is read and hashed.

    `below` names a file or folder of the artefact to look at alone.
    """
    hashes, sizes = provenance.get("files_sha256", {}), provenance.get("files", {})
    names = [name for name in sizes if below in ("", name) or name.startswith(f"{below}/")]
    if lost := damaged_file(root, {"files": {name: sizes[name] for name in names}}):
        return lost
    return next((name for name in names if name in hashes and sha256_file(root / name) != hashes[name]), None)


def append_jsonl(path: str | Path, row: dict[str, Any]) -> None:
    """Append one JSON line; a reader ignores a last line that a crash cut (see `read_jsonl_log`)."""
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        _name_file(error, path)
        raise


def read_jsonl_log(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a log of our own; a cut last line (the process died while writing) is dropped."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # splitlines() also cuts inside JSON strings
    lines = lines if lines[-1] else lines[:-1]
    rows = []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise UserError(f"{path}: line {number + 1} is not JSON; restore the log or remove that line") from None
    return rows


def folder_name(name: str) -> str:
    """A display name as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "unnamed"


def make_folder(field: str, folder: Path) -> None:
    """Make a folder and those above it; UserError, which begins with the field, when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{field}: {folder} is a file, or lies below one; name a folder") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{field}: {folder} cannot be made ({error.strerror}); choose a place that can be written to"
        ) from None


def check_writable(field: str, path: Path, overwrite: bool) -> None:
    """UserError when a file that a command is to write is a folder, or is there and must not be replaced."""
    if path.is_dir():
        raise UserError(f"{field}: {path} is a folder; name a file")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise UserError(f"{field}: {path} is there already; name another file, or add --overwrite true to replace it")
    make_folder(field, path.parent)


def is_empty_folder(path: Path) -> bool:
    """Whether a path is a folder with nothing in it, or with the lock alone that a run leaves which made nothing."""
    return path.is_dir() and all(inside.name == ".lock" for inside in path.iterdir())


@contextlib.contextmanager
def lock_folder(folder: Path, patience_s: float = 10.0) -> Iterator[None]:
    """Hold a folder for one job. The lock dies with its process, so a killed job leaves none behind.

    A folder that is made here is removed again when nothing was written into it.
    """
    made = not folder.exists()
    stream = _take_lock(folder, time.monotonic() + patience_s)
    try:
        yield
    finally:
        if made and is_empty_folder(folder):
            with contextlib.suppress(OSError):  # somebody writes there right now
                (folder / ".lock").unlink()
                folder.rmdir()
        stream.close()  # and with it the lock is let go


def _take_lock(folder: Path, deadline: float) -> IO[str]:
    """The open lock file of a folder, held. Whoever held it before may have removed it meanwhile: it is made anew then."""
    while True:
        make_folder("output_dir", folder)
        with contextlib.ExitStack() as stack:
            try:
                stream = stack.enter_context(open(folder / ".lock", "a+"))
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(stream.fileno()), os.stat(folder / ".lock")):
                    stack.pop_all()
                    return stream
            except (BlockingIOError, FileNotFoundError):
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{folder}: another alignkit job is writing here; wait for it or choose another --output_dir"
                    ) from None
                time.sleep(0.2)
