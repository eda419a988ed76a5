"""Python functions that a config names: `path/to/file.py:name` or `package.module:name`.

Loading one runs the file that holds it: that is the user's own, written-out choice (see `launch.config.python_function`), and
nothing that a hub, a checkpoint or a data set holds ever gets here. Finding and hashing a file run nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from launch.errors import UserError, nearest
from launch.files import sha256_file, sha256_text

PREFIX = "python:"
"""Marks the name of a function among the inputs of a run, as `hub:` marks a name of the hub."""


def split_name(field: str, value: str) -> tuple[str, str]:
    """(file or module, function) of a name. UserError, which begins with the field, when it is none."""
    where, _, name = value.rpartition(":")
    modules = where.split(".")
    if not name.isidentifier() or not (where.endswith(".py") or all(part.isidentifier() for part in modules)):
        raise UserError(
            f"{field}: '{value}' names no function; write path/to/file.py:function or package.module:function"
        )
    return where, name


def find_file(field: str, value: str) -> Path:
    """The file that holds a function; no module is imported. UserError when there is none."""
    where, _ = split_name(field, value)
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
            raise UserError(f"{field}: {where}: no such file{nearest(path.name, siblings)}")
        return path
    spec = _find_spec(where)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise UserError(
            f"{field}: {where}: no such Python module here; install its package, or give the file as path/to/file.py:function"
        )
    return Path(spec.origin)


def _find_spec(module: str) -> ModuleSpec | None:
    """Where a module lies. `importlib.util.find_spec` would import the packages above it."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # a module without a spec, such as __main__
        return None
    name = first
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


def fingerprint(field: str, value: str) -> str:
    """Hash of a function's file and its name there. What the file imports is no part of it."""
    path = find_file(field, value)
    return sha256_text(f"{sha256_file(path)} {split_name(field, value)[1]}")


def load_function(field: str, value: str) -> Callable[..., Any]:
    """The function, after running the file (or importing the module) that holds it. UserError says what failed."""
    where, name = split_name(field, value)
    path = find_file(field, value)
    try:
        module = _run_file(path) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{field}: {value}: could not be loaded ({describe_fault(error, path)}); mend it") from error
    found = getattr(module, name, None)
    if not callable(found):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UserError(f"{field}: {where} has no function '{name}'{nearest(name, names)}")
    return found


def _run_file(path: Path) -> types.ModuleType:
    """A module from the bytes of a file: Python's import would take a cached compilation of an older content for it."""
    module = types.ModuleType(f"alignkit_function_{sha256_text(str(path.resolve()))[:12]}")
    module.__file__ = str(path)
    code = compile(path.read_bytes(), str(path), "exec")
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up there
    exec(code, module.__dict__)
    return module


def describe_fault(error: BaseException, path: Path) -> str:
    """An error of the user's code in one line: its type, its message and the line of `path` where it arose."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            line = frame.lineno
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}" + (f", line {line} of {path.name}" if line else "")
