"""`alignkit preferences stats` and `alignkit preferences export`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.formats import ASSISTANT_TURN, to_implicit, to_unpaired
from data.preferences import count_invalid, describe_preferences, load_preferences
from data.readers import list_files
from launch.config import describe, load_config
from launch.errors import UserError
from launch.files import check_writable, write_atomic


@dataclass(kw_only=True)
class StatsConfig:
    """What a preference file holds."""

    data: str = ""
    """The preferences: a file, a folder or hub:org/name."""
    invalid: Literal["error", "drop"] = "error"
    """What to do with faulty rows (an empty answer, chosen equal to rejected): stop and name the first, or leave them out."""


@dataclass(kw_only=True)
class ExportConfig(StatsConfig):
    """A preference file in another of TRL's formats."""

    format: Literal["implicit", "unpaired"] = "implicit"
    """implicit: chosen and rejected with the prompt inside (RewardTrainer); unpaired: prompt, completion, label (KTO)."""
    output: str = ""
    """The JSONL file to write."""
    overwrite: bool = False
    """Replace the file if it is there."""


def stats(arguments: Sequence[str]) -> None:
    """Print counts, lengths, ties and duplicates as JSON."""
    config = _config(StatsConfig, "stats", arguments)
    if config is not None:
        found = {"invalid_rows": count_invalid(config.data)} if config.invalid == "drop" else {}
        found |= describe_preferences(load_preferences(config.data, config.invalid))
        print(json.dumps(found, indent=2, default=str))


def export(arguments: Sequence[str]) -> None:
    """Write the preferences in another format."""
    config = _config(ExportConfig, "export", arguments)
    if config is None:
        return
    if not config.output:
        raise UserError("alignkit preferences export: output is missing; add --output FILE.jsonl")
    _check_output(config)
    preferences = load_preferences(config.data, config.invalid)
    rows = [to_implicit(p) for p in preferences] if config.format == "implicit" else to_unpaired(preferences)
    write_atomic(config.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    plain = sum(isinstance(p.prompt, str) and not p.prompt.endswith(ASSISTANT_TURN) for p in preferences)
    if config.format == "implicit" and plain:
        print(
            f"alignkit preferences export: {plain} of {len(preferences)} prompts are plain text; RewardTrainer takes such rows, "
            "but nothing says any more where the prompt ends (alignkit cannot read them again)",
            file=sys.stderr,
        )
    print(config.output)


def _check_output(config: ExportConfig) -> None:
    """UserError when the file to write must not be replaced; one that is read never is."""
    output, data = Path(config.output), Path(config.data.split("::")[0])
    if output.is_file() and data.exists() and any(output.samefile(path) for path in list_files(data)):
        raise UserError(f"output: {output} is the data itself; name another file")
    check_writable("output", output, config.overwrite)


def _config(cls: type[Any], name: str, arguments: Sequence[str]) -> Any:
    """The config of a command line, or None after printing its help."""
    if any(word in ("-h", "--help") for word in arguments):
        print(f"alignkit preferences {name} --data FILE ...\n\n{describe(cls)}")
        return None
    config = load_config(cls, arguments)
    if not config.data:
        raise UserError(f"alignkit preferences {name}: data is missing; add --data FILE")
    return config
