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
import subprocess
import tempfile
from pathlib import Path

import torch  # its libgomp must be in the process before the kernels ask for one: they share its threads

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
        return ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning(
            "kernels for the CPU could not be compiled, so PyTorch's operations are used, which are slower (%s). "
            "Install a C++ compiler (g++), or set %s=0 and this is not tried.",
            _reason(error),
            SWITCH,
        )
        return None


def _compiled() -> Path:
    """The shared library in the cache; compiled first if it is not there."""
    command = [_compiler(), *OPTIONS, *_for_this_processor()]
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    parts = [*(path.read_text() for path in SOURCES), *command, version, _processor(), torch.__version__]
    target = _cache() / f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            compiling = [*command, str(SOURCE), "-o", str(built)]
            subprocess.run(compiling, capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS)
            os.replace(built, target)
    return target


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise FileNotFoundError("there is no C++ compiler")


def _for_this_processor() -> list[str]:
    return ["-march=native", WIDEST] if platform.machine() in ("x86_64", "AMD64") else ["-mcpu=native"]


def _processor() -> str:
    """What tells processors apart that need other instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _cache() -> Path:
    """A folder of the user's that can be written to."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignkit"
    for folder in (own, Path(tempfile.gettempdir()) / f"alignkit-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    raise PermissionError(f"no folder to keep them in can be written to, not {own} either")


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines()
        return f"{error.cmd[0]}: {lines[0] if lines else f'exit code {error.returncode}'}"
    return str(error)
