"""Names that are safe in paths and identifiers, and distinct where the things are. Pure."""

from __future__ import annotations

import datetime
import hashlib
import re
import uuid

from data.sources import HubName, parse_hub
from evaluation.report.leaderboard import protocol_hash
from evaluation.report.names import short_source
from evaluation.schema import EvaluationResult
from launch.errors import UserError


def slug(text: str, longest: int = 60) -> str:
    """A name of letters, digits, dots, dashes and underscores; what was changed or cut is told apart by a hash."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:longest]
    if clean == text:
        return clean
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{clean}-{digest}" if clean else f"x-{digest}"


def task_name(result: EvaluationResult) -> str:
    """Suite, data and protocol: two protocols under one metric name never meet in one task."""
    return (
        f"{slug(result.suite)}_{slug(short_source(result.protocol.dataset), 40)}_{protocol_hash(result.protocol)[:8]}"
    )


def model_identifier(result: EvaluationResult) -> str:
    """`organisation/name` of a hub model, else `local/name`."""
    path = result.subject.path
    if path.startswith("hub:"):
        repo = re.split(r"[@:]", path.removeprefix("hub:"))[0]
        return "/".join(slug(part) for part in repo.split("/")) if "/" in repo else f"hub/{slug(repo)}"
    return f"local/{slug(result.subject.name)}"


def hub_dataset(source: str) -> HubName | None:
    """The parts of a source `hub:org/name[:config][@revision][#split][::part]`; None for what is no such repository."""
    if not source.startswith("hub:"):
        return None
    try:
        name = parse_hub(source.partition("::")[0])
    except UserError:
        return None
    return name if "/" in name.path else None


def split_of(result: EvaluationResult) -> str:
    """The split of a data set of the hub, and the part of it that was taken: `test`, `test::eval`; elsewhere the part."""
    place = hub_dataset(result.protocol.dataset)
    return "::".join(part for part in (place.split if place else "", result.protocol.split) if part)


def epoch(result: EvaluationResult) -> float:
    """When the result was written, in seconds since 1970; the same every time, so that exports are reproducible."""
    return datetime.datetime.fromisoformat(result.created).timestamp()


def stable_uuid(text: str) -> str:
    """A version 4 UUID that is a function of a text."""
    return str(uuid.UUID(bytes=hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16], version=4))


def encodable(text: str) -> str:
    """Lone surrogates, which UTF-8 cannot hold, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
