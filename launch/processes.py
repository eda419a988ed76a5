"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

from launch.errors import UserError

PR_SET_PDEATHSIG = 1
SERVER_MODULES = "ALIGNKIT_SERVER_MODULES"
"""Names the modules that a fork server is to import (fork_server.py), with commas between them."""


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies: a killed job must not go on writing unseen (Linux).

    The kernel tells of deaths from now on; whether the parent died before is asked for afterwards.
    """
    parent, starter = os.getppid(), multiprocessing.parent_process()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or (starter is not None and not starter.is_alive()):
        os.kill(os.getpid(), signal.SIGKILL)


def find_accelerate() -> str:
    """Path of the `accelerate` command: that of our own environment first, so that a job runs what is installed here."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("accelerate", path=path)
    if found is None:
        raise UserError(
            "the `accelerate` command is not to be found; activate the environment that alignkit is installed in"
        )
    return found
