"""Content credentials (C2PA): what signed manifests in picture files say about where the pictures come from.

Read by `c2pa-python` (Apache-2.0 or MIT), without a network: manifests that lie elsewhere are not fetched, and whether a
signer is to be trusted is not asked. A missing manifest says nothing: most programs drop it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import UserError

INSTALL = "pip install 'alignkit[watermark]'"
SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
BY_A_MODEL = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")
"""The IPTC's digital source types of what a model made, or had a part in."""


@dataclass(frozen=True)
class Credentials:
    """Of one file: whether it has a manifest, whether file and manifest belong together, and whether it names a model."""

    present: bool = False
    intact: bool = False
    by_a_model: bool = False


def read_credentials(paths: Sequence[Path]) -> list[Credentials]:
    """The credentials of picture files. UserError where the package is missing."""
    try:
        import c2pa
    except ImportError as error:
        raise UserError(f"content credentials need the package c2pa-python ({error}); {INSTALL}") from None
    context = c2pa.Context(c2pa.Settings.from_dict(SETTINGS))
    return [_read(c2pa, context, path) for path in paths]


def _read(c2pa: Any, context: Any, path: Path) -> Credentials:
    try:
        reader = c2pa.Reader.try_create(str(path), context=context)
    except c2pa.C2paError:  # a manifest that cannot be read, or a kind of file that has none
        return Credentials()
    if reader is None:
        return Credentials()
    with reader:
        store = json.loads(reader.json())
    return Credentials(True, store.get("validation_state") in ("Valid", "Trusted"), _names_a_model(store))


def _names_a_model(store: dict[str, Any]) -> bool:
    """Whether an action of the active manifest has the source type of a generative model."""
    manifest = store.get("manifests", {}).get(store.get("active_manifest", ""), {})
    actions = [
        action
        for assertion in manifest.get("assertions", [])
        if str(assertion.get("label", "")).startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", [])
    ]
    return any(str(action.get("digitalSourceType", "")).rsplit("/", 1)[-1] in BY_A_MODEL for action in actions)
