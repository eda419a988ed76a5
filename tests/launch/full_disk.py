"""Two ranks save checkpoints while the disk fills up for one of them, at one step of the protocol after another."""

import json
from pathlib import Path

import torch

from launch import checkpoint
from launch.checkpoint import CheckpointStore
from launch.runtime import running, start_runtime


def no_space(*_args, **_kwargs):
    raise OSError(28, "No space left on device")


def main(words):
    folder = Path(words[0])
    runtime = start_runtime("fp32", timeout_s=60)
    with running(runtime):
        store = CheckpointStore(folder / "checkpoints", runtime)

        def write(aside):
            torch.save(torch.ones(3), aside / f"part-{runtime.rank}.pt")

        outcomes = {"good": store.save_with(1, write)}
        for guilty in (0, 1):
            places = [
                (store, "_check_space"),
                (checkpoint, "sha256_file"),
                (torch, "save"),
                (checkpoint, "seal_folder"),
            ]
            for owner, name in places:
                before = getattr(owner, name)
                if runtime.rank == guilty:
                    setattr(owner, name, no_space)
                outcomes[f"{name} on {guilty}"] = store.save_with(2, write)
                setattr(owner, name, before)
        outcomes["good again"] = store.save_with(3, write)
        outcomes["latest"] = store.latest().step
        (folder / f"rank-{runtime.rank}.json").write_text(json.dumps(outcomes))
