"""The splits that all stages share: `SOURCE::train`, `SOURCE::eval`, and the halves `::train/a` and `::train/b`.

A split is a function of an item's content alone (see splits.py), with one salt for all of alignkit. So no stage can
train on what another holds out, and two reward models trained on the halves share no prompt's reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from data.records import Turns, plain_text
from data.splits import hash_position
from launch.errors import UserError, nearest

T = TypeVar("T")
EVAL_SHARE = 0.1
SPLITS = ("train", "eval", "train/a", "train/b")


def parse_source(source: str, splits: Sequence[str] = SPLITS) -> tuple[str, str | None]:
    """(`SOURCE`, split) of `SOURCE::split`, split one of `splits`; it is None when none is named."""
    bare, mark, split = source.partition("::")
    if not mark:
        return source, None
    if split not in splits:
        raise UserError(f"{source}: no such split{nearest(split, splits)}")
    return bare, split


def splits_of(text: Turns) -> set[str]:
    """The names of the splits that an item with this text is in."""
    plain = plain_text(text)
    if hash_position(plain, "alignkit-eval") < EVAL_SHARE:
        return {"eval"}
    return {"train", "train/a" if hash_position(plain, "alignkit-half") < 0.5 else "train/b"}


def keep_split(items: list[T], split: str | None, key: Callable[[T], Turns], source: str) -> list[T]:
    """The items of a split, by the text that `key` gives; all of them when no split is named."""
    if split is None:
        return items
    kept = [item for item in items if split in splits_of(key(item))]
    if not kept:
        raise UserError(f"{source}: none of {len(items)} items is in the split '{split}'; use more data or no split")
    return kept
