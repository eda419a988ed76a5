"""Reading weights strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_weights(kind: Any, folder: str | Path, **options: Any) -> Any:
    """A diffusers model from its folder: safetensors only, ValueError when weights are missing.

    diffusers itself falls back to a pickle, and leaves weights that the file lacks empty with a warning.
    """
    model, report = kind.from_pretrained(str(folder), use_safetensors=True, output_loading_info=True, **options)
    if report["missing_keys"]:
        raise ValueError(f"its weights lack {report['missing_keys'][0]}")
    return model
