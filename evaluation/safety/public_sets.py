"""What alignkit knows of the public safety sets: files/public_sets.json. None comes with it; paths and hub names do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from launch.config import build
from launch.errors import UserError
from launch.files import read_json

SETS_FILE = Path(__file__).parent / "files" / "public_sets.json"


@dataclass(frozen=True)
class PublicSet:
    """What a set is for, its usual file, the items read of all of it, its licence, its hub name ("" for none), its authors."""

    use: Literal["prompts", "likelihood"]
    file: str
    items: int
    licence: str
    hub: str
    paper: str


@cache
def public_sets() -> dict[str, PublicSet]:
    """name -> set, in the order of the file."""
    return {name: build(PublicSet, entry, name) for name, entry in read_json(SETS_FILE)["sets"].items()}


def check_sources(sources: dict[str, str]) -> None:
    """UserError for the first set (name -> source) whose path does not exist: what it is, and where it can be had."""
    for name, source in sources.items():
        if source.startswith("hub:") or Path(source).exists():
            continue
        known = public_sets()[name]
        elsewhere = f", or {known.hub}" if known.hub else ""
        raise UserError(
            f"{name}: {source}: no such file or folder; give the path of the set's {known.file} "
            f"({known.paper}, {known.licence}){elsewhere}"
        )


def size_note(name: str, found: int) -> str:
    """A caveat where another number of items was read than the published set has; "" where it is that number.

    Items and not rows: half of Winogender's rows have no second person and are none.
    """
    usual = public_sets()[name].items
    return "" if found == usual else f"{name}: {found} items, where the published set has {usual}."
