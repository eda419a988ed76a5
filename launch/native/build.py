"""Compiling and loading `kernels.cpp`: once for a machine, into the user's cache.

What is compiled is known by its sources, the compiler, its options and the processor, so that nodes which share a home folder
do not take each other's. Several processes may compile at once: each writes a file of its own, which is then renamed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch  # its libgomp must be in the process before those of g++ ask for one: they share its threads

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
SOURCES = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
OPTIONS = ["-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"]
# the widest registers, which compilers avoid by themselves on some processors
WIDEST = "-mprefer-vector-width=512"
SWITCH = "ALIGNKIT_NATIVE"
COMPILE_SECONDS = 300


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had, which is said once, or are switched off by ALIGNKIT_NATIVE=0."""
    if os.environ.get(SWITCH, "1") == "0":
        return None
    try:
        return _load()
    except Exception as error:  # without them everything works: nothing that goes wrong here may end a job
        log.warning(
            "kernels for the CPU could not be compiled, so PyTorch's operations are used, which are slower (%s). "
            "Install a C++ compiler (g++), or set %s=0 and this is not tried.",
            _reason(error),
            SWITCH,
        )
        return None


def _load() -> ctypes.CDLL:
    """By the first compiler and in the first folder that can do it; what the last one failed with is raised."""
    failure: Exception = FileNotFoundError("there is no C++ compiler")
    for compiler in _compilers():
        command = [compiler, *OPTIONS, *_for_this_processor()]
        for folder in _folders():
            try:
                target = _safe(folder) / f"kernels-{_identity(command)}.so"
                if not target.exists():
                    _compile(command, target)
                return _open(command, target)
            except (OSError, subprocess.SubprocessError) as error:
                failure = error
    raise failure


def _open(command: list[str], target: Path) -> ctypes.CDLL:
    """A file that is none (empty, say) is made anew, once."""
    try:
        return ctypes.CDLL(str(target))
    except OSError:
        _compile(command, target)
        return ctypes.CDLL(str(target))


def _compile(command: list[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        compiling = [*command, str(SOURCE), "-o", str(built)]
        subprocess.run(compiling, capture_output=True, text=True, errors="replace", check=True, timeout=COMPILE_SECONDS)
        with built.open("rb") as written:
            os.fsync(written.fileno())  # to load a file of which a part is missing would kill the process
        os.replace(built, target)


def _identity(command: list[str]) -> str:
    version = subprocess.run(
        [command[0], "--version"], capture_output=True, text=True, errors="replace", check=True, timeout=60
    ).stdout
    sources = [path.read_text(encoding="utf-8") for path in SOURCES]
    parts = [*sources, *command, version, _processor(), torch.__version__]
    return hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]


def _compilers() -> list[str]:
    """g++ before clang++, which brings another OpenMP, with threads of its own beside PyTorch's."""
    found = [shutil.which(name) for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    return list(dict.fromkeys(path for path in found if path))


def _for_this_processor() -> list[str]:
    return ["-march=native", WIDEST] if platform.machine() in ("x86_64", "AMD64") else ["-mcpu=native"]


def _processor() -> str:
    """What tells processors apart that need other instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _folders() -> list[Path]:
    """Where they may be kept: in the user's cache, or else among temporary files."""
    told, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    caches = [told if os.path.isabs(told) else os.path.join(home, ".cache")]
    return [Path(path) / "alignkit" for path in caches if os.path.isabs(path)] + [
        Path(tempfile.gettempdir()) / f"alignkit-{os.getuid()}"
    ]


def _safe(folder: Path) -> Path:
    """The folder, made if it is not there. PermissionError if others could put something there that is then loaded."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines()
        return f"{error.cmd[0]}: {lines[0] if lines else f'exit code {error.returncode}'}"
    return str(error)
