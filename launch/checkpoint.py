"""Checkpoints that survive a kill at any moment, a full disk and a flipped bit.

The protocol (the evidence that asks for each step is in docs/launch.md):
 1. all ranks write into `.tmp-<step>-<id>/`, and every file is fsynced;
 2. the files are hashed (SHA-256, the work shared by the ranks);
 3. MANIFEST.json is written last, with step, world and the hash of every file;
 4. after each of these the ranks agree that all went well: when one failed, all raise, none hangs;
 5. the folder is renamed to `step-<step>`, and its parent fsynced; one that stands there already (the step was made again)
    is set aside as `.old-step-<step>` before and removed after: killed between, the next start finishes the exchange;
 6. only then older ones go, renamed to `.del-*` first, never below two, and never the one that is `pinned`;
 7. the newest whose manifest verifies is resumed from; every one that is passed over is named with the reason, and
    set aside as `damaged-step-<step>` at the next save, or rotation would count it among the newest;
 8. when checkpoints exist and none verifies the job ends: it never starts again from scratch in silence.
Nothing on the way back executes: tensors are safetensors, the rest is JSON; what DeepSpeed and the transformers Trainer
write are pickles, which are read with `weights_only=True` (launch/shards.py). The hashes find accidents; they have no
key, and so are no defence against somebody who can write to the folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from launch.errors import UserError, errno_of
from launch.files import canonical_json, fsync_path, sha256_file, sha256_text, write_atomic

if TYPE_CHECKING:
    from launch.runtime import Runtime

MANIFEST = "MANIFEST.json"
SCHEMA = 1


# ------------------------------------------------------------------------------------------ one folder


def seal_folder(folder: Path, meta: dict[str, Any], hashes: dict[str, str] | None = None) -> None:
    """Write the manifest of a finished folder: from now on `verify_folder` accepts it as it is, and only so."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": (hashes or {}).get(name) or sha256_file(path)}
    write_atomic(folder / MANIFEST, _render_manifest({"schema": SCHEMA, "files": files, **meta}))


def _render_manifest(content: dict[str, Any]) -> str:
    """The manifest's exact text: it holds its own hash, and a byte that differs anywhere is found."""
    return json.dumps({**content, "sha256": sha256_text(canonical_json(content))}, indent=1, sort_keys=True) + "\n"


def verify_folder(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are all there and unchanged; ValueError says what is wrong."""
    try:
        text = (folder / MANIFEST).read_bytes().decode("utf-8")
        manifest = json.loads(text)
    except FileNotFoundError:
        raise ValueError("it has no manifest: it was not finished") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError("its manifest is not readable JSON") from None
    if not isinstance(manifest, dict) or manifest.pop("schema", None) != SCHEMA:
        raise ValueError(f"its manifest is not of schema {SCHEMA}")
    manifest.pop("sha256", None)
    if _render_manifest({**manifest, "schema": SCHEMA}) != text:
        raise ValueError("its manifest has changed since it was written (SHA-256 differs)")
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST}
    for name, entry in manifest["files"].items():
        path = folder / name
        if name not in present:
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
        if sha256_file(path) != entry["sha256"]:
            raise ValueError(f"{name} has changed since it was written (SHA-256 differs)")
    if extra := present - set(manifest["files"]):
        raise ValueError(f"{min(extra)} is not in its manifest")
    return manifest


def _is_intact(folder: Path) -> bool:
    try:
        verify_folder(folder)
    except (ValueError, OSError):
        return False
    return True


def fsync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`."""
    for path in [*folder.rglob("*"), folder]:
        fsync_path(path)


# ------------------------------------------------------------------------------------- trees of tensors


def pack_tree(tree: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Split nested dicts, lists and tuples into tensors (name -> tensor) and a JSON skeleton that refers to them.

    A tensor that occurs twice (tied weights) is stored once. Values other than tensors must be JSON values. ValueError for keys with
    slashes by which two tensors would have the same name.
    """
    tensors: dict[str, torch.Tensor] = {}
    names: dict[tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype], str] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, torch.Tensor):
            key = (node.data_ptr(), tuple(node.shape), tuple(node.stride()), node.dtype)
            if node.numel() == 0 or key not in names:
                if path in tensors:
                    raise ValueError(f"two tensors of a checkpoint would be called {path}; name them without slashes")
                names[key] = path
                tensors[path] = node.detach().to("cpu", copy=True).contiguous()
            return {"__tensor__": names[key]}
        if isinstance(node, dict):
            return {"__items__": [[key, walk(value, f"{path}/{key}")] for key, value in node.items()]}
        if isinstance(node, (list, tuple)):
            return {f"__{type(node).__name__}__": [walk(value, f"{path}/{i}") for i, value in enumerate(node)]}
        if isinstance(node, (str, int, float, bool, type(None))):
            return node
        raise TypeError(f"a checkpoint holds tensors and JSON values, not {type(node).__name__} (at {path})")

    skeleton = walk(tree, "")
    return tensors, skeleton


def unpack_tree(tensors: dict[str, torch.Tensor], skeleton: Any) -> Any:
    """The tree that `pack_tree` split."""
    if isinstance(skeleton, dict):
        (kind, content), *_ = skeleton.items()
        if kind == "__tensor__":
            return tensors[content]
        if kind == "__items__":
            return {key: unpack_tree(tensors, value) for key, value in content}
        values = [unpack_tree(tensors, value) for value in content]
        return tuple(values) if kind == "__tuple__" else values
    return skeleton


def write_tree(folder: Path, name: str, tree: Any) -> None:
    """Write a tree as `<name>.safetensors` and `<name>.json`."""
    tensors, skeleton = pack_tree(tree)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(skeleton), encoding="utf-8")


def read_tree(folder: Path, name: str) -> Any:
    """The tree that `write_tree` wrote; tensors are on the CPU."""
    skeleton = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return unpack_tree(load_file(folder / f"{name}.safetensors"), skeleton)


# ---------------------------------------------------------------------------------------------- the store


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    step: int
    folder: Path
    meta: dict[str, Any]

    def state(self) -> dict[str, Any]:
        """The tree that `CheckpointStore.save` was given."""
        return read_tree(self.folder, "state")


class _Fault(Exception):
    """A step failed on some rank; raised on all of them alike."""

    def __init__(self, code: int | None, text: str) -> None:
        super().__init__(text)
        self.code = code


class CheckpointStore:
    """The checkpoints of one run. All ranks call `save`, `save_with` and `latest` together.

    `note` is called on rank 0 before a checkpoint is sealed; what it returns goes into the manifest.
    """

    def __init__(
        self, folder: Path, runtime: Runtime, keep: int = 2, note: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        self.folder, self.runtime, self.keep, self.note = folder, runtime, max(2, keep), note
        self.last_step, self.last_save_failed = 0, False
        self.pinned: int | None = None
        """A step whose checkpoint rotation leaves alone."""
        self._resumed: Path | None = None
        self._damaged: list[Path] = []
        try:
            self._attempt(self._open_folder)
        except _Fault as fault:
            if fault.code:
                raise OSError(fault.code, os.strerror(fault.code), str(folder)) from None
            raise RuntimeError(f"{folder} could not be opened: {fault}") from None

    def _open_folder(self) -> None:
        if self.runtime.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._finish_exchange()
            for stale in (path for kind in (".tmp-*", ".old-*", ".del-*") for path in self.folder.glob(kind)):
                shutil.rmtree(stale)

    def _finish_exchange(self) -> None:
        """Fill a place whose checkpoint was set aside for a new one: with that, or with the old one if the new is not whole."""
        for old in self.folder.glob(".old-step-*"):
            target = self.folder / old.name.removeprefix(".old-")
            for new in self.folder.glob(f".tmp-{target.name.removeprefix('step-')}-*"):
                if not target.exists() and _is_intact(new):
                    os.rename(new, target)
            if not target.exists():
                os.rename(old, target)

    def save(self, step: int, state: dict[str, Any]) -> bool:
        """Save a tree of tensors and JSON values that is the same on every rank; rank 0 writes it."""
        return self.save_with(step, lambda folder: write_tree(folder, "state", state) if self.runtime.is_main else None)

    def save_with(self, step: int, write: Callable[[Path], Any], meta: dict[str, Any] | None = None) -> bool:
        """Let every rank write its files into a folder that then becomes the checkpoint of `step`.

        Returns False, with a warning, when the disk is full: the job can go on, the checkpoints before are intact.
        Any other failure of one rank is raised on all of them. (A `write` with collectives inside, as DeepSpeed's,
        must not fail between them: then the other ranks wait for the job's time-out.)
        """
        aside = self.folder / self.runtime.broadcast(f".tmp-{step:08d}-{uuid.uuid4().hex[:8]}")

        def write_mine() -> None:
            write(aside)

        try:
            self._attempt(lambda: self._make_aside(aside))
            self._attempt(write_mine)
            shares = self._attempt(lambda: self._hash_share(aside))
            self._attempt(lambda: self._commit(aside, step, meta or {}, shares))
        except _Fault as fault:
            self._give_up(aside, step, fault)
            return False
        self.last_step, self.last_save_failed = step, False
        return True

    def _attempt(self, action: Callable[[], Any]) -> list[Any]:
        """Run a step on every rank and agree on its outcome: each rank's result, or on all of them the first `_Fault`.

        No action of ours holds a collective: a rank that fails inside would leave the others waiting in it.
        """
        result, fault = None, None
        try:
            result = action()
        except Exception as error:
            fault = (errno_of(error), f"rank {self.runtime.rank}: {type(error).__name__}: {error}")
        outcomes = self.runtime.gather_objects((result, fault))
        for _, fault in outcomes:
            if fault is not None:
                raise _Fault(*fault)
        return [result for result, _ in outcomes]

    def _give_up(self, aside: Path, step: int, fault: _Fault) -> None:
        """Clear away what was begun. A full disk costs this checkpoint, anything else the job."""
        if self.runtime.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):  # then the next start does it; the other ranks wait at the barrier
                self._finish_exchange()
        self.runtime.barrier()
        if fault.code not in (errno.ENOSPC, errno.EDQUOT):
            raise RuntimeError(f"checkpoint of step {step} in {self.folder} failed: {fault}") from None
        self.last_save_failed = True
        self._say(
            f"{self.folder}: the disk is full; no checkpoint at step {step}, the earlier ones are intact; free some space"
        )

    def _make_aside(self, aside: Path) -> None:
        if self.runtime.is_main:
            self._check_space()
            aside.mkdir()

    def _hash_share(self, aside: Path) -> dict[str, str]:
        """Hashes of this rank's share of the files."""
        files = sorted(p for p in aside.rglob("*") if p.is_file())
        return {p.relative_to(aside).as_posix(): sha256_file(p) for p in files[self.runtime.rank :: self.runtime.world]}

    def _commit(self, aside: Path, step: int, meta: dict[str, Any], shares: list[dict[str, str]]) -> None:
        if not self.runtime.is_main:
            return
        hashes = {name: value for share in shares for name, value in share.items()}
        noted = self.note() if self.note else {}
        fsync_tree(aside)
        seal_folder(aside, {"step": step, "world": self.runtime.world, **noted, **meta}, hashes)
        self._set_damaged_aside()
        target = self._path(step)
        old = target.with_name(f".old-{target.name}")
        if target.exists():  # the same step again, after a resume from before it or a roll-back
            os.rename(target, old)
        os.rename(aside, target)
        fsync_path(self.folder)
        if old.exists():
            shutil.rmtree(old)
        self._rotate()

    def _set_damaged_aside(self) -> None:
        """Keep what `latest` passed over for inspection, of one resume alone, where neither rotation nor resume sees it."""
        if not self._damaged:
            return
        for old in self.folder.glob("damaged-step-*"):
            shutil.rmtree(old)
        for folder in (f for f in self._damaged if f.exists()):
            os.rename(folder, folder.with_name(f"damaged-{folder.name}"))
        self._damaged = []

    def _check_space(self) -> None:
        """Ask for the size of the last checkpoint before writing: cheaper to know now than half-way."""
        steps = self.steps()
        if steps:
            size = sum(p.stat().st_size for p in self._path(steps[-1]).rglob("*") if p.is_file())
            if shutil.disk_usage(self.folder).free < size:
                raise OSError(errno.ENOSPC, "not enough space for another checkpoint")

    def _rotate(self) -> None:
        kept = [*self.steps()[-self.keep :], self.pinned]
        for step in self.steps():
            if step not in kept and self._path(step) != self._resumed:
                self._remove(self._path(step))

    def _remove(self, folder: Path) -> None:
        doomed = folder.with_name(f".del-{folder.name}-{uuid.uuid4().hex[:8]}")
        os.rename(folder, doomed)
        shutil.rmtree(doomed)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, verified or not, oldest first."""
        return sorted(int(p.name[5:]) for p in self.folder.glob("step-*") if p.name[5:].isdigit())

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, the newest first: the run goes on from this one."""

        def discard() -> None:
            for later in reversed(self.steps()) if self.runtime.is_main else []:
                if later > step:
                    self._remove(self._path(later))

        try:
            self._attempt(discard)
        except _Fault as fault:
            raise RuntimeError(f"{self.folder}: checkpoints could not be removed: {fault}") from None

    def latest(self, among: Callable[[int], bool] = lambda step: True) -> Checkpoint | None:
        """The newest checkpoint (of the steps `among` is true of) that verifies; None when there is none at all.

        UserError when none verifies.
        """
        try:
            found, passed_over = self._attempt(lambda: self._find_intact(among))[0]
        except _Fault as fault:
            raise RuntimeError(f"{self.folder}: the checkpoints could not be read: {fault}") from None
        reasons = [f"{self._path(step)}: {reason}" for step, reason in passed_over]
        for reason in reasons:
            self._say(f"checkpoint passed over: {reason}")
        if found is None and reasons:
            raise UserError(
                f"{self.folder}: no checkpoint is intact ({'; '.join(reasons)}); restore one from a copy, or delete the folder to start from the beginning"
            )
        if found is None:
            return None
        step, manifest = found
        self.last_step, self._resumed = step, self._path(step)
        self._damaged = [self._path(other) for other, _ in passed_over]
        return Checkpoint(step, self._path(step), manifest)

    def _find_intact(
        self, among: Callable[[int], bool]
    ) -> tuple[tuple[int, dict[str, Any]] | None, list[tuple[int, str]]]:
        """On rank 0: (step, manifest) of the newest that verifies, and (step, reason) of those passed over."""
        passed_over: list[tuple[int, str]] = []
        for step in filter(among, reversed(self.steps())) if self.runtime.is_main else []:
            try:
                return (step, verify_folder(self._path(step))), passed_over
            except (ValueError, OSError) as error:
                passed_over.append((step, str(error)))
        return None, passed_over

    def _say(self, text: str) -> None:
        if self.runtime.is_main:
            print(f"alignkit: warning: {text}", file=sys.stderr, flush=True)
