"""What the benchmarks share: where data and results are, and how a command is run and timed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from launch.provenance import code_version, hardware, package_versions

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("ALIGNKIT_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "benchmarks" / "results"
CODE = code_version()
"""As it was at the start: a checkout may move on while it is measured, and result files are a part of it."""


def result_file(name: str, model: str) -> Path:
    """Where the result goes; that of a GPU, or of another model than the small one, does not replace that of the CPU."""
    on = "-gpu" if hardware()["gpus"] else ""
    return RESULTS / f"{name}{on}{'' if model == 'small' else '-' + model}.json"


def about(command: str) -> dict[str, Any]:
    """What every result file says beside its numbers: the command, the commit of the code, the machine, the packages."""
    return {"command": command, "code": CODE, "hardware": hardware(), "versions": package_versions()}


def alignkit(*words: object) -> dict[str, float]:
    """Run one command as a user would; its wall and processor seconds, and the load of the machine before it."""
    load, before, start = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(Path(sys.executable).parent / "alignkit"), *map(str, words)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.perf_counter() - start
    return {"wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1), "load_average_at_start": round(load, 2)}
