"""`alignkit launch COMMAND ...`: the exact way to start a stage on this machine, under Slurm or under Kubernetes.

It prints; it starts nothing. What is printed is complete: copy it, or write it to a file with --write FILE.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Literal

from launch.cli import COMMANDS, config_class, find_command
from launch.config import build, check_overrides, describe, field_types, find_recipe, load_config, parse_overrides
from launch.errors import UserError, nearest
from launch.files import check_writable, write_atomic
from launch.ranges import PositiveInt, Range

HOME = Path(__file__).resolve().parent


@dataclass(kw_only=True)
class LaunchConfig:
    """Where a stage is to run. Everything after `--` goes to the stage itself."""

    on: Literal["local", "slurm", "kubernetes"] = "local"
    """What starts the job."""
    nodes: PositiveInt = 1
    """Machines."""
    processes_per_node: PositiveInt | None = None
    """Processes on each machine, one for each GPU; unless given, 8 under Slurm and Kubernetes, and locally one for each
    GPU of this machine, or one where it has none."""
    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage; 0 is data parallel without DeepSpeed."""
    job_name: str = "alignkit"
    """Name of the job: lower-case letters, digits and dashes."""
    hours: PositiveInt = 24
    """Time limit under Slurm."""
    cpus_per_process: PositiveInt = 8
    """CPU cores for each process."""
    image: str = "alignkit:latest"
    """Container image under Kubernetes; it has alignkit installed."""
    volume: str = "alignkit-runs"
    """Persistent volume claim under Kubernetes, mounted at /runs: recipe and output_dir must lie there, all ranks see it."""
    port: Annotated[int, Range(1, 65_535)] = 29500
    """Port of the rendezvous on the first machine."""
    write: str | None = None
    """Write to this file instead of printing."""
    overwrite: bool = False
    """Replace the file of `write` if it is there."""

    @property
    def processes(self) -> int:
        """Processes on each machine."""
        return self.processes_per_node or (max(1, count_gpus()) if self.on == "local" else 8)

    def check(self) -> None:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.job_name):  # with what JobSet adds: a host name
            raise ValueError(
                f"job_name: {self.job_name!r}: give up to 40 lower-case letters, digits and dashes, a letter first and no dash last"
            )


def count_gpus() -> int:
    """The GPUs of this machine that a job may use, told without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len([path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()])


def accelerate_words(config: LaunchConfig, module: str, stage_words: Sequence[str], rank: str, address: str) -> str:
    """The `accelerate launch` line of one machine, quoted for a shell. `rank` and `address` may be shell variables.

    One rendezvous backend per case, as measured (docs/launch.md): `standard` under DeepSpeed, since its default
    launcher wants pdsh and password-less ssh; no `same_network`, which takes c10d's endpoint away.
    """
    words = ["accelerate", "launch", "--num_machines", str(config.nodes)]
    words += ["--num_processes", str(config.nodes * config.processes), "--mixed_precision", "no"]
    if config.zero:
        words += ["--use_deepspeed", "--zero_stage", str(config.zero), "--gradient_clipping", "1.0"]
        words += ["--zero3_init_flag", "true", "--zero3_save_16bit_model", "true"] if config.zero == 3 else []
        words += ["--deepspeed_multinode_launcher", "standard"] if config.nodes > 1 else []
    elif config.nodes * config.processes > 1:
        words += ["--multi_gpu"]
    line = " ".join(map(shlex.quote, words))
    if config.nodes > 1:
        line += f" --machine_rank {rank} --main_process_ip {address} --main_process_port {config.port}"
    return f"{line} -m {shlex.quote(module)} " + " ".join(map(shlex.quote, stage_words))


def render(config: LaunchConfig, command: str, stage_words: Sequence[str]) -> str:
    """The job as text."""
    module = COMMANDS[command][0]
    if config.on == "local":
        lines = [
            accelerate_words(config, module, stage_words, str(node), "FIRST_MACHINE") for node in range(config.nodes)
        ]
        heads = [f"# machine {n}{'' if n else '; put its address for FIRST_MACHINE'}" for n in range(config.nodes)]
        pairs = [f"{head}\n{line}" for head, line in zip(heads, lines, strict=True)]
        return "\n".join(pairs) if config.nodes > 1 else lines[0]
    if config.on == "slurm":
        line = accelerate_words(config, module, stage_words, '"$SLURM_NODEID"', '"$HEAD"')
        line = line.replace("'", "'\\''")  # it stands in single quotes
        template = (HOME / "slurm" / "job.sbatch").read_text()
    else:
        line = accelerate_words(
            config, module, stage_words, '"$JOB_COMPLETION_INDEX"', f"{config.job_name}-worker-0-0.{config.job_name}"
        )
        line = line.replace("$(", "$$(")  # Kubernetes has variables of this form
        template = (HOME / "k8s" / "jobset.yaml").read_text()
    values = {
        "name": config.job_name,
        "nodes": config.nodes,
        "processes": config.processes,
        "cpus": config.processes * config.cpus_per_process,
        "hours": config.hours,
        "image": json.dumps(config.image),  # JSON is YAML
        "volume": json.dumps(config.volume),
        "port": config.port,
        "line": line,
    }
    return Template(template).substitute(values).rstrip()


def main(arguments: Sequence[str]) -> None:
    """Entry point of `alignkit launch`."""
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    own, stage_words = words[:cut], words[cut + 1 :]
    if not own or "-h" in own or "--help" in own:
        print(
            f"alignkit launch COMMAND [--on slurm] [--nodes 4] ... -- STAGE ARGUMENTS\n\n{__doc__}\n\n{describe(LaunchConfig)}"
        )
        return
    if own[0].startswith("-"):
        raise UserError(f"alignkit launch: '{own[0]}': name the stage first, as in `alignkit launch ppo --on slurm`")
    command, rest = find_command(own)
    if COMMANDS[command][1] != "STAGE":
        raise UserError(f"alignkit launch: '{command}' is not a stage; name one such as ppo, sft or pretrain")
    overrides = parse_overrides(rest)
    if strangers := [key for key in overrides if key not in field_types(LaunchConfig)]:
        raise UserError(
            f"alignkit launch: no option '--{strangers[0]}'{nearest(strangers[0], field_types(LaunchConfig))}; "
            f"the options of {command} itself come after ` -- `"
        )
    config = build(LaunchConfig, overrides, "command line")
    if not stage_words:
        raise UserError(
            f"alignkit launch: no options for {command}; give them after ` -- `, as in -- --config FILE.yaml --output_dir DIR"
        )
    if any(not word.isprintable() for word in stage_words):
        raise UserError("alignkit launch: an option holds a line break or the like; write that value into the recipe")
    if config.write:
        check_writable("write", Path(config.write), config.overwrite)
    _check_stage_words(command, stage_words, config.on == "local")
    text = render(config, command, stage_words)
    if config.write:
        write_atomic(config.write, text + "\n")
        print(config.write)
    else:
        print(text)


def _check_stage_words(command: str, words: Sequence[str], here: bool) -> None:
    """What the stage would refuse of its own options, told now. A recipe may lie where the job runs, and not here."""
    if "-h" in words or "--help" in words:
        return
    cls, overrides = config_class(command), parse_overrides(words)
    recipe = overrides.pop("config", None)
    if recipe is None or here or find_recipe(str(recipe)).is_file():
        load_config(cls, words)
    else:
        check_overrides(cls, overrides)
