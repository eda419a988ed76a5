"""What files of pictures tell before a pixel is looked at: format, size, mode, encoding, and what else is written in them.

A detector that is shown JPEG against PNG, or one quality against another, learns that and nothing else. Three results of
the literature turned out to be that. So sets that differ are refused, and two controls see the files alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from data.image_files import LOSSLESS, LOSSY, SAMPLES_FILE
from data.images import content_fractions
from data.named_splits import parse_source
from evaluation.deepfake.detectors.base import fit_linear
from evaluation.deepfake.protocol import Scored
from launch.errors import UserError

SPLITS = ("train", "eval")
ENCODING = ("progressive", "interlace", "compression", "lossless")
"""Entries of a picture's `info` that say how it is encoded; `jfif` and the like are written by every program."""
FEWEST = 4
"""Files that each half of a control needs of either kind."""


@dataclass(frozen=True)
class FileTraits:
    """A picture file without its pixels: how it is encoded, and the lengths of what is written beside the picture."""

    encoding: str
    metadata: Mapping[str, float]


def picture_files(source: str) -> list[Path]:
    """The picture files of a source in the order in which they are read; none where images lie in arrays or tables."""
    bare, split = parse_source(source, SPLITS)
    folder = Path(bare)
    if split is not None or not folder.is_dir() or (folder / SAMPLES_FILE).is_file():
        return []
    endings = LOSSLESS + LOSSY
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings and not _hidden(p, folder))


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def read_traits(path: Path) -> FileTraits:
    """The traits of a file; pixels are not decoded."""
    try:
        with Image.open(path) as picture:
            info = {key: value for key, value in picture.info.items() if isinstance(key, str)}
            words = [str(picture.format), picture.mode, f"{picture.width}x{picture.height}"]
            words += [f"{key} {info[key]}" for key in ENCODING if key in info]
            if isinstance(picture, JpegImagePlugin.JpegImageFile):
                tables = hashlib.sha256(repr(sorted(picture.quantization.items())).encode()).hexdigest()[:6]
                words += [f"tables {tables}", f"sampling {JpegImagePlugin.get_sampling(picture)}"]
            return FileTraits(", ".join(words), {k: _length(v) for k, v in info.items() if k not in ENCODING})
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); replace or remove it") from None


def _length(value: object) -> float:
    """How much a metadata entry says: its length, or 1 and its size where it is a number."""
    return float(len(value)) if isinstance(value, (bytes, str, tuple, list, dict)) else 1.0


def check_encodings(name: str, generated: Sequence[FileTraits], real: Sequence[FileTraits]) -> None:
    """UserError where most files of one set are encoded in a way that few of the other are."""
    ours, theirs = (Counter(t.encoding for t in part) for part in (generated, real))
    for here, there, counts, others in (
        ("generated", "real", ours, theirs),
        ("real", "generated", theirs, ours),
    ):
        encoding, count = counts.most_common(1)[0]
        share, other = count / counts.total(), others[encoding] / others.total()
        if share > 0.5 and other < share / 2:
            usual = others.most_common(1)[0][0]
            raise UserError(
                f"generators.{name}: {share:.0%} of the {here} files are {encoding}, of the {there} ones {other:.0%} (most are "
                f"{usual}): a detector would only see that, and its number would mean nothing; make both in the same way"
            )


def encoding_control(generated: Sequence[FileTraits], real: Sequence[FileTraits], files: Sequence[bytes]) -> Scored:
    """A detector that sees how files are encoded and nothing else; `files`: something of each by which to halve them."""
    encodings = sorted({t.encoding for t in (*real, *generated)})
    columns = np.array([[float(t.encoding == e) for e in encodings] for t in (*real, *generated)])
    return _control(columns, len(real), files)


def metadata_control(generated: Sequence[FileTraits], real: Sequence[FileTraits], files: Sequence[bytes]) -> Scored:
    """A detector that sees what is written beside the picture (which entries, and how long) and nothing else."""
    keys = sorted({key for t in (*real, *generated) for key in t.metadata})
    rows = [
        [v for key in keys for v in (float(key in t.metadata), t.metadata.get(key, 0.0))] for t in (*real, *generated)
    ]
    columns = np.log1p(np.array(rows)) if keys else np.zeros((len(rows), 1))
    return _control(columns, len(real), files)


def _control(columns: np.ndarray, real: int, files: Sequence[bytes]) -> Scored:
    """Halves by content, real files first: trained on one, tested on the other."""
    keys = np.array([np.frombuffer(hashlib.sha256(content).digest(), np.uint8) for content in files])
    train, generated = content_fractions(keys, "file control") < 0.5, np.arange(len(columns)) >= real
    parts = [
        columns[train & ~generated],
        columns[train & generated],
        columns[~train & ~generated],
        columns[~train & generated],
    ]
    if min(map(len, parts)) < FEWEST:
        raise UserError(f"a control of files needs {FEWEST} of either kind in each half; give more pictures")
    score = fit_linear(parts[0], parts[1])
    return Scored.of(score(parts[2]), score(parts[3]))
