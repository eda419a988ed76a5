"""Where an artefact comes from: full config, code, parents, data, hardware, time. And its model card."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from launch.errors import UserError, nearest
from launch.files import changed_file, is_empty_folder, read_json, sha256_text, sha256_tree, write_atomic
from launch.functions import PREFIX, fingerprint
from launch.hub import describe_commit

PACKAGES = [
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "deepspeed",
    "peft",
    "datasets",
    "diffusers",
    "tokenizers",
    "safetensors",
    "torch-fidelity",
    "numpy",
]
ADAPTER_TASKS = {"CAUSAL_LM": "text-generation", "SEQ_CLS": "text-classification"}
EVALUATED = re.compile(
    r"(heldout|eval)/.+|best/(?!step).+"
    r"|(eval_(loss|perplexity|accuracy|margin)|accuracy|loss|ece|(longest|shortest)_baseline|length_(slope|correlation))(_low|_high)?"
)
"""Names of a summary that are results on held-out data: `model-index` lists these, and not how the training went."""
NAMED_SOURCES = ("embedded:", "hub:", PREFIX)
"""What an input begins with that is no path."""
RUNS_WITHIN = "runs:"
"""Marks a folder among the inputs whose content is that of the runs in it: for all but reports those are left out."""
SPLITS_VERSION = 2
"""Which texts are in a split (`SOURCE::train`): raised with every change of data/named_splits.py that moves one. So what was
made with other splits is another run, and an old artefact is never evaluated on texts that it was trained on."""


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in ["alignkit", *PACKAGES]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_version() -> dict[str, Any]:
    """The commit of the checkout that runs, when it is one, and whether it has changes.

    Asked once: later changes are none of what this process has imported.
    """
    root = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "-uno"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of this machine."""
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
        "system": platform.platform(),
    }


def peak_memory_mib() -> float:
    """The largest resident set of this process so far, MiB.

    Not `ru_maxrss`, which counts that of the process that started this one, too: Linux keeps it over fork and exec.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def fingerprint_input(field: str, value: str) -> dict[str, Any]:
    """What identifies an input: the content hash of a path or of a function's file, or the name of an embedded source, or of one on the
    hub, whose commit is told beside it: it is compared where it is known (`launch.hub.find_moved`), and no part of the hash.

    UserError when the path is missing, or is a stage's folder that was not finished.
    """
    return _fingerprint(field, value) | ({"splits": SPLITS_VERSION} if "::" in value else {})


def _fingerprint(field: str, value: str) -> dict[str, Any]:
    if value.startswith(PREFIX):
        return {"source": value, "sha256": fingerprint(field, value.removeprefix(PREFIX))}
    if value.startswith(NAMED_SOURCES):
        version = platform.python_version() if value.startswith("embedded:") else None
        commit = describe_commit(value) if value.startswith("hub:") else {}
        return {"source": value, "sha256": sha256_text(f"{value} {version}"), "version": version, **commit}
    with_runs = value.startswith(RUNS_WITHIN)
    value = value.removeprefix(RUNS_WITHIN)
    path = Path(value.split("::")[0])  # `::train` and the like pick a split of what lies there
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir() if p.name[0] != "."] if path.parent.is_dir() else []
        raise UserError(
            f"{field}: {value}: no such file or folder{nearest(path.name, siblings) if siblings else ''}; run the stage that makes it first, or name a hub source as hub:org/name"
        )
    if is_empty_folder(path):
        raise UserError(f"{field}: {value}: the folder is empty; run the stage that makes it first")
    if (path / "run.json").exists() and not (path / "provenance.json").exists():
        command = read_json(path / "run.json").get("stage", "its stage")
        raise UserError(f"{field}: {value}: this run of `alignkit {command}` was not finished; run it to its end first")
    if (path / "provenance.json").exists():
        parent = read_json(path / "provenance.json")
        return {"path": value, "sha256": parent["content_sha256"], "stage": parent["stage"]}
    if with_runs:
        return {"source": f"{RUNS_WITHIN}{value}", "sha256": sha256_tree(path, with_runs=True)}
    return {"path": value, "sha256": sha256_tree(path)}


def check_unchanged(field: str, value: str) -> None:
    """UserError when an input is, or lies in, a complete artefact and is not what the stage wrote: every file is hashed."""
    if value.startswith(NAMED_SOURCES):
        return
    path = Path(value.removeprefix(RUNS_WITHIN).split("::")[0])
    real = path.resolve()
    folder = next((f for f in (real, *real.parents) if (f / "provenance.json").is_file()), None)
    if folder is None:
        return
    provenance = read_json(folder / "provenance.json")
    below = "" if folder == real else real.relative_to(folder).as_posix()
    if name := changed_file(folder, provenance, below):
        shown = path if folder == real else folder
        raise UserError(
            f"{field}: {shown / name} is gone or has changed since `alignkit {provenance['stage']}` made {shown}; "
            "run that stage again with the same --output_dir, which makes it again, or restore the file"
        )


def content_of(entry: dict[str, Any]) -> str:
    """What an input contributes to a run's identity: its hash and the split of it that is read."""
    split = (entry.get("path") or entry["source"]).partition("::")[2]
    return f"{entry['sha256']}::{split}@{entry.get('splits', 1)}" if split else entry["sha256"]


def library_and_task(folder: Path) -> tuple[str, str]:
    """The library that reads the model in a folder and the task it is for, as the hub names them; empty when unknown."""
    if (folder / "model_index.json").exists():
        return "diffusers", "unconditional-image-generation"
    if (folder / "adapter_config.json").exists():
        return "peft", ADAPTER_TASKS.get(read_json(folder / "adapter_config.json").get("task_type", ""), "")
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if "_diffusers_version" in config:  # written by the base class of diffusers' models, which ours have, too
        return _home_of(config.get("_class_name", "")), "unconditional-image-generation"
    architecture = next(iter(config.get("architectures") or []), "")
    if not architecture:
        return "", ""
    tasks = {"ForCausalLM": "text-generation", "ForSequenceClassification": "text-classification"}
    return "transformers", next((task for suffix, task in tasks.items() if architecture.endswith(suffix)), "")


def _home_of(name: str) -> str:
    """The library that has a model class: diffusers, or we."""
    import diffusers

    return "diffusers" if name in dir(diffusers) else "alignkit"


def _card_header(folder: Path, stage: str, numbers: dict[str, float], library: str, task: str) -> dict[str, Any]:
    header: dict[str, Any] = {"library_name": library} if library else {}
    header |= {"pipeline_tag": task} if task else {}
    header["tags"] = ["alignkit", stage.replace(" ", "-")]
    found = {name: value for name, value in sorted(numbers.items()) if EVALUATED.fullmatch(name)}
    if found and task:  # the hub wants a task for results; the table below the header has them always
        result = {
            "task": {"type": task},
            "dataset": {"type": "alignkit", "name": f"{stage} summary"},
            "metrics": [{"type": name, "value": value} for name, value in found.items()],
        }
        header["model-index"] = [{"name": folder.name, "results": [result]}]
    return header


def _shown(value: float) -> str:
    """A number of a summary: what is whole in full, else six digits."""
    return f"{value:,.0f}" if abs(value) < 1e15 and value == int(value) else f"{value:.6g}"


def _version_of(entry: dict[str, Any]) -> str:
    if "commit" in entry:
        return f"commit {entry['commit'] or 'unknown'}"
    return f"sha256 {entry['sha256'][:12]}"


def write_model_card(
    folder: Path,
    stage: str,
    summary: dict[str, Any],
    provenance: dict[str, Any],
    library: str | None = None,
    task: str | None = None,
) -> None:
    """README.md of an artefact: a model card with `model-index` results, readable by people and by the hub.

    `library` and `task` are read from the folder's model where they are not given; results and reports have none.
    """
    numbers = {k: v for k, v in summary.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    found_library, found_task = library_and_task(folder)
    library, task = found_library if library is None else library, found_task if task is None else task
    header = _card_header(folder, stage, numbers, library, task)
    parents = "\n".join(
        f"- {name}: `{entry.get('path') or entry.get('source')}` ({_version_of(entry)})"
        for name, entry in provenance["inputs"].items()
    )
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in sorted(numbers.items()))
    text = f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {folder.name}

Made by `alignkit {stage}` (alignkit {provenance["versions"].get("alignkit", "unknown")}) in {provenance["seconds"]:.0f} s. Seed {provenance["config"].get("seed")}.

## Inputs

{parents or "none"}

## Results

| metric | value |
|---|---|
{rows}

The full configuration, package versions and hardware are in `provenance.json`; the course of the run is in `metrics.jsonl`.
"""
    write_atomic(folder / "README.md", text)
