"""Where the real data sets lie: $ALIGNKIT_DATA, by default ../shared/data beside the repository."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """A function from a path inside the data folder to the file; skips the test when it is absent."""
    root = Path(os.environ.get("ALIGNKIT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"data set {name} is absent; set ALIGNKIT_DATA to the folder that holds it")
        return path

    return find
