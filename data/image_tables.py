"""Images in tables of Hugging Face `datasets`: of the hub, saved by `save_to_disk`, or in a parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.image_files import LOSSY, describe, pixels_of
from data.readers import Row
from data.sources import read_hub
from launch.errors import UserError, reason_of

STATE, PARTS = "state.json", "dataset_dict.json"
"""What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write into their folder."""
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")


def is_table(source: str) -> bool:
    """Whether a source is a data set of `datasets` rather than image files."""
    path = Path(source)
    saved = (path / PARTS).is_file() or ((path / STATE).is_file() and (path / "dataset_info.json").is_file())
    return source.startswith("hub:") or saved or (path.suffix == ".parquet" and path.is_file())


def read_table(source: str) -> tuple[np.ndarray, np.ndarray | None, str]:
    """The images uint8 (N, C, H, W) of a data set, its labels (N,) where it has some, and `lossy` or `none`.

    Images are in the column `image` or `img`, or the only column of pictures; labels in `label`, `labels` or `fine_label`.
    """
    rows = read_hub(source) if source.startswith("hub:") else _read_local(source)
    if not rows:
        raise UserError(f"{source}: has no rows; give a data set with images")
    column = _image_column(source, rows[0])
    pictures = [_pixels(row, column) for row in rows]
    for row, picture in zip(rows, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise UserError(
                f"{row.where}: {describe(picture)}, but the first is {describe(pictures[0])}; bring all to one size and mode"
            )
    kinds = {f".{str(row.values[column].format or '').lower()}" for row in rows}
    lossy = kinds & set(LOSSY)
    if lossy and kinds - set(LOSSY):
        raise UserError(f"{source}: mixes lossy pictures with lossless ones; keep one kind")
    return np.stack(pictures), _labels(rows), "lossy" if lossy else "none"


def _read_local(source: str) -> list[Row]:
    import datasets  # type: ignore[import-untyped]

    path = Path(source)
    if (path / PARTS).is_file():
        parts = sorted(p.name for p in path.iterdir() if (p / STATE).is_file())
        raise UserError(
            f"{source}: holds {len(parts)} data sets ({', '.join(parts)}); name one, as in {path / parts[0]}"
        )
    try:
        if path.suffix == ".parquet":
            table = datasets.Dataset.from_parquet(str(path))
        else:
            table = datasets.load_from_disk(source)
    except Exception as error:  # pyarrow and datasets raise a dozen kinds
        raise UserError(f"{source}: could not be read as a data set ({reason_of(error)}); write it again") from None
    return [Row(f"{source}: row {number}", values) for number, values in enumerate(table, 1)]


def _image_column(source: str, first: Row) -> str:
    pictures = [name for name, value in first.values.items() if isinstance(value, Image.Image)]
    named = [name for name in IMAGE_COLUMNS if name in pictures] or pictures
    if not named or (len(pictures) > 1 and named == pictures):
        found = ", ".join(f"{name}: {type(value).__name__}" for name, value in first.values.items())
        raise UserError(
            f"{source}: has {'several columns' if pictures else 'no column'} of pictures ({found}); call the one to use 'image'"
        )
    return named[0]


def _pixels(row: Row, column: str) -> np.ndarray:
    picture = row.values[column]
    if not isinstance(picture, Image.Image):
        raise UserError(f"{row.where}: its {column} is {type(picture).__name__}, not a picture; remove the row")
    return pixels_of(picture, row.where)


def _labels(rows: Sequence[Row]) -> np.ndarray | None:
    column = next((name for name in LABEL_COLUMNS if name in rows[0].values), None)
    if column is None:
        return None
    values: list[Any] = [row.values[column] for row in rows]
    if not all(isinstance(value, int) and value >= 0 for value in values):  # a hub's test split has -1 for all
        return None
    return np.array(values, dtype=np.int64)
