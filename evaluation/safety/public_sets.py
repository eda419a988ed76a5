"""Public safety sets by name: `--sets truthfulqa=PATH` or `truthfulqa=hub:...`; the list is files/public_sets.json."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from launch.config import build
from launch.errors import UserError, nearest
from launch.files import read_json

SETS_FILE = Path(__file__).parent / "files" / "public_sets.json"
Use = Literal["prompts", "likelihood"]


@dataclass(frozen=True)
class PublicSet:
    """What a set is for, its usual file, its number of rows, its licence, its hub name ("" for none), its authors."""

    use: Use
    file: str
    items: int
    licence: str
    hub: str
    paper: str


@cache
def public_sets() -> dict[str, PublicSet]:
    """name -> set, in the order of the file."""
    return {name: build(PublicSet, entry, name) for name, entry in read_json(SETS_FILE)["sets"].items()}


def parse_set(field: str, entry: str, use: Use) -> tuple[str, str]:
    """(name, source) of `name=source`; a path that does not exist, and a name that is not known, are one sentence."""
    name, mark, source = entry.partition("=")
    known = {n: s for n, s in public_sets().items() if s.use == use}
    if name not in known:
        raise UserError(f"{field}: no set is called '{name}'{nearest(name, known)}; there are {', '.join(known)}")
    found = known[name]
    elsewhere = f" or {name}={found.hub}" if found.hub else ""
    if not mark or not source:
        raise UserError(f"{field}: '{name}' does not come with alignkit; give {name}=PATH of its {found.file}{elsewhere}")
    if not source.startswith("hub:") and not Path(source).exists():
        raise UserError(
            f"{field}: {source}: no such file or folder; '{name}' ({found.paper}, {found.licence}) is usually a file "
            f"{found.file}, give its path{elsewhere}"
        )
    return name, source
