"""The one split of all stages: `SOURCE::train`, `SOURCE::eval`, the halves `::train/a` and `::train/b`, and hold-outs.

Each text has a position in [0, 1), a hash of its content. `::eval` is what lies below EVAL_SHARE, `::train` the rest.
What a stage holds out by itself is the next piece above `::eval`. So the hold-outs of all stages are one nested
family, no stage that holds anything out trains on `::eval`, and the split of an item survives reordering, additions
and removals. Two reward models that are trained on the halves share no prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from data.records import Document, Pair, Preference, Turns, normalise, plain_text
from launch.errors import UserError, nearest

T = TypeVar("T", bound=Document | Pair | Preference | Mapping[str, Any] | Turns)
U = TypeVar("U")
EVAL_SHARE = 0.1
# Changed on purpose in November 2026 (from "alignkit-eval" and "alignkit-half"): the demo's settings were chosen while
# looking at results on the old split, and are to be confirmed on one that nobody has looked at.
EVAL_SALT = "alignkit/eval"
HALF_SALT = "alignkit/half"
SPLITS = ("train", "eval", "train/a", "train/b")


def hash_position(text: str, salt: str) -> float:
    """A number in [0, 1) that depends on the normalised text and the salt: BLAKE2b, 64 bits of which 53 are used."""
    digest = hashlib.blake2b(f"{salt}\0{normalise(text)}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def lowest_hashes(items: Sequence[U], text: Callable[[U], str], n: int | None, salt: str) -> list[U]:
    """The n items whose texts have the lowest hash, in their order; all of them for None. The same whatever the order."""
    if n is None or len(items) <= n:
        return list(items)
    ranked = sorted(range(len(items)), key=lambda i: (hash_position(text(items[i]), salt), i))
    return [items[i] for i in sorted(ranked[:n])]


def split_key(item: T) -> str:
    """The text that an item is split by: of a document its text, of all else (pair, preference, row, prompt) the prompt.

    The prompt and not the answer, since everything that is made from a prompt (samples, preferences, rollouts) carries
    it along, and so stays on the side of the row that it came from.
    """
    if isinstance(item, Document):
        return item.text
    if isinstance(item, Mapping):
        return plain_text(item["prompt"])
    return plain_text(item.prompt if isinstance(item, Pair | Preference) else item)


def parse_source(source: str, splits: Sequence[str] = SPLITS) -> tuple[str, str | None]:
    """(`SOURCE`, split) of `SOURCE::split`, split one of `splits`; it is None when none is named."""
    bare, mark, split = source.partition("::")
    if not mark:
        return source, None
    if split not in splits:
        raise UserError(f"{source}: no such split{nearest(split, splits)}")
    return bare, split


def splits_of(item: T) -> set[str]:
    """The names of the splits that an item is in."""
    key = split_key(item)
    if hash_position(key, EVAL_SALT) < EVAL_SHARE:
        return {"eval"}
    return {"train", "train/a" if hash_position(key, HALF_SALT) < 0.5 else "train/b"}


def keep_split(items: list[T], split: str | None, source: str) -> list[T]:
    """The items of a named split, in their order; all of them when none is named. UserError when none is left."""
    if split is None:
        return items
    kept = [item for item in items if split in splits_of(item)]
    if not kept:
        raise UserError(f"{source}: none of {len(items)} items is in the split '{split}'; use more data or no split")
    return kept


def hold_out(items: Iterable[T], share: float) -> tuple[list[T], list[T]]:
    """(items to train on, held-out items) of a stage that holds out `share`, in [0, 1), of what may be trained on.

    Held out are `::eval`, where `items` has some, and the share of `::train` whose positions come next. So of
    `SOURCE::train` the share is held out, of a whole SOURCE 0.1 + 0.9 share. Shares hold in expectation (binomial).
    A share of 0 holds nothing out: then all is trained on.
    """
    edge = EVAL_SHARE + share * (1 - EVAL_SHARE) if share else 0.0
    parts: tuple[list[T], list[T]] = ([], [])
    for item in items:
        parts[hash_position(split_key(item), EVAL_SALT) < edge].append(item)
    return parts
