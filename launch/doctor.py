"""`alignkit doctor`: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from launch.errors import UserError
from launch.processes import find_accelerate


@dataclass(frozen=True)
class Finding:
    """One line of the report. `level`: ok, note (works without), or fault."""

    level: str
    what: str
    remedy: str = ""


def check_python() -> list[Finding]:
    return [Finding("ok", f"Python {platform.python_version()}")]


def check_requirements() -> list[Finding]:
    """Each requirement of the installed distribution: present, and in the range that is tested."""
    from packaging.requirements import Requirement

    findings = []
    for text in importlib.metadata.requires("alignkit") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding("fault", f"{requirement.name} is not installed", f'pip install "{requirement}"'))
            continue
        if requirement.specifier.contains(version.split("+")[0], prereleases=True):
            findings.append(Finding("ok", f"{requirement.name} {version}"))
        else:
            findings.append(
                Finding(
                    "fault",
                    f"{requirement.name} {version} is not {requirement.specifier}",
                    f'pip install "{requirement}"',
                )
            )
    return findings


EXTRAS = {
    "tracking": "tracking by it",
    "evaluate": "`evaluate.load` of alignkit's metrics",
    "tasks": "`evaluate text --tasks`",
    "watermark": "watermarks and content credentials",
}
"""Extra of the distribution -> what does not work without its packages."""


def check_extras() -> list[Finding]:
    """Packages that some parts need alone, each that is not there."""
    from packaging.requirements import Requirement

    findings = []
    for requirement in map(Requirement, importlib.metadata.requires("alignkit") or []):
        used = [
            use for extra, use in EXTRAS.items() if requirement.marker and requirement.marker.evaluate({"extra": extra})
        ]
        if used and not _installed(requirement.name):
            requirement.marker = None
            what = f"{requirement.name} is not installed: no {used[0]}"
            findings.append(Finding("note", what, f'pip install "{requirement}"'))
    return findings


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_torch() -> list[Finding]:
    """Devices, and the pair torch / torchvision, which must be of the same build."""
    try:
        import torch
    except ImportError as error:
        return [
            Finding("fault", f"torch does not import ({error})", 'pip install --force-reinstall "torch>=2.15,<2.16"')
        ]
    findings = []
    cores = len(os.sched_getaffinity(0))
    if torch.cuda.is_available():
        findings += [
            Finding("ok", f"GPU {i}: {torch.cuda.get_device_name(i)}") for i in range(torch.cuda.device_count())
        ]
    else:
        findings.append(Finding("note", f"no GPU: jobs run on {cores} CPU cores, several processes over gloo"))
    if "+cpu" in torch.__version__:
        findings.append(
            Finding(
                "fault",
                f"torch {torch.__version__} is a CPU-only build: torchvision does not import beside it",
                'pip install --force-reinstall "torch>=2.15,<2.16" "torchvision>=0.29"',
            )
        )
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        findings.append(
            Finding(
                "fault",
                f"torchvision does not import ({type(error).__name__}: {error})",
                'pip install --force-reinstall "torch>=2.15,<2.16" "torchvision>=0.29"',
            )
        )
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and threads.isdigit() and int(threads) > cores:
        findings.append(
            Finding("fault", f"OMP_NUM_THREADS={threads} is more than the {cores} cores", "unset OMP_NUM_THREADS")
        )
    return findings


def check_shadowed() -> list[Finding]:
    from launch.entry import check_shadows

    sys.path.insert(0, os.getcwd())  # where `python -m` and `accelerate launch -m` look first; this script does not
    try:
        check_shadows()
    except UserError as error:
        return [Finding("fault", str(error))]
    finally:
        sys.path.remove(os.getcwd())
    return [Finding("ok", "alignkit's packages are not hidden by the working directory")]


def check_tools() -> list[Finding]:
    findings = []
    try:
        findings.append(Finding("ok", find_accelerate()))
    except UserError as error:
        findings.append(Finding("fault", str(error)))
    config = os.path.expanduser("~/.cache/huggingface/accelerate/default_config.yaml")
    if os.path.exists(config):
        findings.append(
            Finding(
                "note",
                f"{config} is picked up by every `accelerate launch` without --config_file",
                "give --config_file",
            )
        )
    free = shutil.disk_usage(".").free / 2**30
    level = "ok" if free > 5 else "note"
    findings.append(
        Finding(
            level, f"{free:.0f} GiB free in {os.getcwd()}", "" if free > 5 else "free some space: checkpoints need it"
        )
    )
    return findings


def main(arguments: Sequence[str]) -> None:
    """Print the findings; UserError (exit code 2) when there is a fault."""
    if any(word in ("-h", "--help") for word in arguments):
        print(f"alignkit doctor\n\n{__doc__}")
        return
    findings = [
        finding
        for check in (check_python, check_requirements, check_extras, check_torch, check_shadowed, check_tools)
        for finding in check()
    ]
    for finding in findings:
        print(f"{finding.level:5}  {finding.what}" + (f"\n       -> {finding.remedy}" if finding.remedy else ""))
    faults = sum(f.level == "fault" for f in findings)
    if faults:
        raise UserError(f"this machine has {faults} fault{'s' if faults > 1 else ''}; run the commands above")
