"""PPO jobs whose disk fills up, with more and more room left: does each end in order, with its checkpoints, and as if nothing was?

python -m benchmarks.full_disk --fills 100    (about six minutes on two cores; needs root, to mount; writes benchmarks/results/full_disk.json)

At the beginning of update 3 all but so many bytes of a small file system are taken, from 0 up to what a whole run writes: whichever
write comes to the end of them fails. The job must go on, or end with a sentence and exit code 0 or 2; the newest checkpoint from
before must verify; with room again the same command must end as the undisturbed run did, to the bit. Exit code 1 when any fails.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, about
from launch.checkpoint import verify_folder
from launch.files import write_json
from tests.distributed.test_ppo_faults import UPDATES, command, fill_disk, small_disk
from tests.forked import ForkedJob, run_forked
from tests.kills import finish, newest_intact, result_of
from tests.support import save_policy, save_prompts, save_reward

DISK = 24 * 2**20
UPDATE = 3
SETTINGS = {"rollouts_ahead": 1, "dump_rollouts": "jsonl"}
FULL = ("the disk is full", "No space left on device")


def run_job(inputs: Any, root: Path, left: int, expected: Any) -> tuple[str, str]:
    """How a job with so much room ended, and what was wrong with that ("" for nothing)."""
    disk, logs = root / f"disk{left}", root / f"logs{left}"
    with small_disk(disk, DISK):
        call = command(inputs, disk / "out", **SETTINGS)
        hook = functools.partial(fill_disk, disk=disk, update=UPDATE, phase="score", left=left)
        job = ForkedJob(call, logs, hook=hook)
        code, said = job.wait()[0], job.say()
        told = any(text in said for text in FULL)
        ending = f"exit code {code}" + (", told" if told else "")
        faults = {
            "an exit code that is neither 0 nor 2": code not in (0, 2),
            "a traceback": "Traceback" in said,
            "an end without a reason": code == 2 and not told,
            "a checkpoint lost": newest_intact(disk / "out") < UPDATE - 1,
        }
        (disk / "filler").unlink()
        if code:
            run_forked(call, logs)
        faults["another result"] = result_of(disk / "out") != expected
        for path in (disk / "out" / "checkpoints").glob("step-*"):
            verify_folder(path)
    return ending, ", ".join(name for name, found in faults.items() if found)


def main() -> None:
    """Run all jobs; write the tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fills", type=int, default=100)
    options = parser.parse_args()
    start, endings, faults = time.monotonic(), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = (save_policy(root / "policy"), save_reward(root / "reward"), save_prompts(root / "prompts.jsonl"))
        finish(command(inputs, root / "whole", **SETTINGS), root / "whole", root / "logs", 1, 0)
        expected = result_of(root / "whole")
        most = sum(path.stat().st_size for path in (root / "whole").rglob("*") if path.is_file())
        for number in range(options.fills):
            left = most * number // options.fills
            ending, fault = run_job(inputs, root, left, expected)
            endings[ending] += 1
            faults += [f"{left} bytes left: {fault}"] if fault else []
        print(dict(endings), faults)
    write_json(
        RESULTS / "full_disk.json",
        {
            **about(f"python -m benchmarks.full_disk --fills {options.fills}"),
            "updates": UPDATES,
            "bytes_left": {"from": 0, "below": most, "jobs": options.fills},
            "endings": dict(endings),
            "faults": faults,
            "seconds": round(time.monotonic() - start),
        },
    )
    if faults:
        sys.exit(f"{len(faults)} of {options.fills} jobs did not end as they should")


if __name__ == "__main__":
    main()
