"""Data that lies on every machine: the text of the Python distribution, scikit-learn's handwritten digits.

The text is a function of the Python version: 3.11 gives about 7,000 pairs (signature, summary line that a person
wrote) and 2.5 million characters of prose. Extraction takes some seconds and is cached in the user's cache folder.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from data import python_docs
from data.records import Document, Pair
from launch.errors import UserError
from launch.files import write_atomic

_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__", "lib-dynload", "pydoc_data"}
_TESTS = {"test", "tests", "idle_test"}


def python_prose() -> list[Document]:
    """English prose: the language reference's topics, module docstrings, comments. Free of every pair's docstring."""
    return [Document(text, origin) for text, origin in _extracted()["documents"]]


def docstring_pairs() -> list[Pair]:
    """(signature, summary line) pairs of the standard library's functions, methods and classes.

    Prompts are unique, and so are summaries: of the definitions that share one (overridden methods) the first is taken.
    So no split has a prompt or a summary on both sides.
    """
    return [Pair(prompt, completion, origin) for prompt, completion, origin in _extracted()["pairs"]]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits: images uint8 (1797, 8, 8) in 0..255 and labels int64 (1797,) in 0..9.

    Alpaydin and Kaynak 1998 (UCI optdigits, test part), as bundled with scikit-learn; the 17 grey levels 0..16 of
    the original are spread over 0..255.
    """
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


# ---------------------------------------------------------------------------------------------- extraction


@functools.cache
def _extracted() -> dict[str, Any]:
    """`extract()` of this Python, from the cache file when it is there and readable."""
    root = Path(sysconfig.get_path("stdlib"))
    files = source_files(root)
    cache = cache_file(root, files)
    try:
        return json.loads(gzip.decompress(cache.read_bytes()))
    except (OSError, EOFError, ValueError):  # absent, or cut by a crash of the machine: make it anew
        extracted = extract(root, files)
    with contextlib.suppress(OSError):  # a read-only home costs the seconds again, nothing else
        write_atomic(cache, gzip.compress(json.dumps(extracted).encode(), mtime=0))
    return extracted


def source_files(root: Path) -> list[Path]:
    """The standard library's Python sources in name order."""
    found: list[Path] = []
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(set(inner) - _NOT_STDLIB)  # walks in name order and not into installed packages
        found.extend(Path(folder, name) for name in sorted(names) if name.endswith(".py"))
    if not found:
        raise UserError(f"{root}: no Python sources there; use a Python that ships its standard library as .py files")
    return found


def cache_file(root: Path, files: list[Path]) -> Path:
    """Where the extraction of these sources by this code is cached."""
    code = Path(python_docs.__file__).read_bytes() + Path(__file__).read_bytes()
    names = "\n".join([sys.version, platform.machine(), str(root), *map(str, files)])
    key = hashlib.blake2b(code + names.encode(), digest_size=8).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "alignkit" / f"python-{platform.python_version()}-{key}.json.gz"


def extract(root: Path, files: list[Path]) -> dict[str, Any]:
    """The pairs and documents of a standard library as JSON-able rows: {"pairs": ..., "documents": ...}."""
    modules = []
    for path in files:
        relative = path.relative_to(root)
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a few test files in other encodings
            continue
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        modules.append(python_docs.read_module(name, source, with_definitions=not _TESTS & set(relative.parts)))
    pairs = python_docs.pairs(d for module in modules for d in module.definitions)
    documents = python_docs.prose(modules, read_topics(root), pairs)
    return {"pairs": [dataclasses.astuple(p) for p in pairs], "documents": [dataclasses.astuple(d) for d in documents]}


def read_topics(root: Path) -> dict[str, str]:
    """The sections of the language reference that `help()` shows, read as a literal and not executed."""
    path = root / "pydoc_data" / "topics.py"
    if not path.is_file():
        return {}
    assignments = [s for s in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(s, ast.Assign)]
    return dict(sorted(ast.literal_eval(assignments[-1].value).items()))
