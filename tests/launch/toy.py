"""A stage that counts: quick, resumable, and told by its config how to misbehave."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from launch.config import artefact
from launch.entry import guarded, run_stage_command
from launch.stage import Stage, StageConfig

LAUNCHER = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
"""Of a lifecycle's entry that starts it on two processes."""


@dataclass(kw_only=True)
class ToyConfig(StageConfig):
    """Count to `steps`."""

    steps: int = 6
    """How far."""
    rate: float = 0.5
    """How fast."""
    source: str = artefact("")
    """An input."""
    prepare: float = 0.0
    """Seconds before the first step."""
    pause: float = 0.0
    """Seconds of each step."""
    long_step: int = 0
    """This step takes a minute."""
    die_at: int = 0
    """Kill this process by SIGKILL after so many steps, once."""
    crash_at: int = 0
    """An exception, as a bug of ours would raise it, in this step."""
    die_late: bool = False
    """Kill this process by SIGKILL after the last row, which is logged after the last checkpoint, once."""
    stop_at: int = 0
    """Ask for a stop (SIGTERM) after so many steps, once."""


def run(config, job):
    import torch  # not above: `alignkit run` looks at configs without it

    total = torch.zeros(3)
    start = 0
    time.sleep(config.prepare)
    job.watchdog.alive()  # as what waits for a service in the meantime
    time.sleep(config.prepare)
    if found := job.resume():
        start, total = found.step, found.state()["total"]
    for step in range(start + 1, config.steps + 1):
        total += config.rate * step
        job.log(step, {"total": float(total[0]), "perf/when": time.time()})
        time.sleep(60 if step == config.long_step else config.pause)
        job.beat(step)
        if step == config.crash_at:
            raise ZeroDivisionError("a bug of the stage")
        once = Path(config.output_dir) / ".once"
        if step in (config.die_at, config.stop_at) and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL if step == config.die_at else signal.SIGTERM)
        if job.checkpoint_due(step):
            job.checkpoints.save(step, {"total": total})
            job.stop_if_requested(step)
    job.log(config.steps, {"late": float(total[0])})  # as a closing evaluation does, at a step that has its checkpoint
    if config.die_late and not (job.output_dir / ".once").exists():
        (job.output_dir / ".once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (job.output_dir / "result.txt").write_text(f"{total.tolist()}")
    return {"total": float(total[0])}


STAGE = Stage("toy", ToyConfig, run)

if __name__ == "__main__":
    import sys

    sys.exit(guarded(lambda: run_stage_command(STAGE, sys.argv[1:])))
