"""Which commit of a hub repository an input is: a name stays the same while what it stands for moves on."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

UNKNOWN = "neither the hub nor its cache on this machine could tell the commit"
PATIENCE_S = 5.0
_SOURCE = re.compile(r"hub:(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)(?::[\w.-]+)?(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
KINDS = ("model", "dataset")


def find_commit(source: str) -> str | None:
    """The commit of `hub:org/name[:config][@revision]...`: from the hub, or offline from its cache; None when unknown."""
    match = _SOURCE.match(source)
    if match is None:
        return None
    repo, revision = match["repo"], match["revision"] or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    return _ask_hub(repo, revision) or _look_in_cache(repo, revision)


@functools.cache
def _ask_hub(repo: str, revision: str) -> str | None:
    """The commit as the hub has it. Asked once in a process: where there is no network each try may take its time-out."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return None
    for kind in KINDS:
        try:
            return HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=PATIENCE_S).sha
        except (
            HfHubHTTPError
        ):  # it answers, but has no such model, or does not show it: whoever loads it says it better
            continue
        except Exception:  # of whatever library makes the connection: it does not answer
            return None
    return None


def _look_in_cache(repo: str, revision: str) -> str | None:
    """What the cache holds for a branch or tag: it is what an offline load will read."""
    from huggingface_hub import constants

    for kind in KINDS:
        path = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}" / "refs" / revision
        if path.is_file():
            return path.read_text(encoding="utf-8").strip() or None
    return None


def describe_commit(source: str) -> dict[str, Any]:
    """What the record of an input says of its commit."""
    commit = find_commit(source)
    return {"commit": commit} if commit else {"commit": None, "commit_unknown": UNKNOWN}


def find_moved(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What has moved on: the first input whose commit was known, is known, and is another one."""
    for name, entry in now.items():
        old, new = before.get(name, {}).get("commit"), entry.get("commit")
        if old and new and old != new:
            return f"{name}: {entry['source']} was at commit {old[:12]}, is now at {new[:12]}"
    return None


def settle_commits(inputs: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Inputs with the commits that were unknown at the start: as an earlier session knew them, or as loading made them known."""
    settled = {}
    for name, entry in inputs.items():
        if "commit_unknown" in entry:
            known = before.get(name, {}).get("commit")
            entry = {k: v for k, v in entry.items() if k not in ("commit", "commit_unknown")}
            entry |= {"commit": known} if known else describe_commit(entry["source"])
        settled[name] = entry
    return settled
