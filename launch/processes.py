"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path

from launch.errors import UserError

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies: a killed job must not go on writing unseen (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def find_accelerate() -> str:
    """Path of the `accelerate` command: that of our own environment first, so that a job runs what is installed here."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("accelerate", path=path)
    if found is None:
        raise UserError(
            "the `accelerate` command is not to be found; activate the environment that alignkit is installed in"
        )
    return found
