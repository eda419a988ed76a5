"""Splits by content: an item's split depends on its own text and the salt, on nothing else.

So the split of an item survives reordering, additions and removals, and is the same in every stage and process.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from data.records import Pair, normalise, plain_text
from launch.errors import UserError, nearest

T = TypeVar("T")


def hash_position(text: str, salt: str) -> float:
    """A number in [0, 1) that depends on the normalised text and the salt: BLAKE2b, 64 bits of which 53 are used."""
    digest = hashlib.blake2b(f"{salt}\0{normalise(text)}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def split_by_hash(
    items: Iterable[T], key: str | Callable[[T], Any], fractions: Mapping[str, float], salt: str
) -> dict[str, list[T]]:
    """Items by split, in their own order; items whose normalised keys are equal are in the same split.

    `key` is a field's name or a function that gives the text (or messages) to hash. `fractions` maps a split's name
    to its share, in order, adding up to 1; the shares hold in expectation (binomial). Stages that must not see each
    other's items share one salt and one `fractions`.
    """
    edges = _edges(fractions)
    text = key if callable(key) else _field_reader(key)
    split: dict[str, list[T]] = {name: [] for name in fractions}
    for item in items:
        position = hash_position(plain_text(text(item)), salt)
        split[next(name for name, edge in edges if position < edge)].append(item)
    return split


def split_pairs(pairs: Iterable[Pair], fractions: Mapping[str, float], salt: str) -> dict[str, list[Pair]]:
    """Pairs with unique prompts, split by completion: no prompt and no completion is in two splits.

    UserError when a prompt comes twice with different completions, since it could then be in two splits.
    """
    pairs = list(pairs)
    first: dict[str, Pair] = {}
    for pair in pairs:
        other = first.setdefault(normalise(plain_text(pair.prompt)), pair)
        if normalise(plain_text(other.completion)) != normalise(plain_text(pair.completion)):
            raise UserError(
                f"{pair.origin}: the prompt of {other.origin} again, with another completion; keep one of the two, "
                "or split by prompt"
            )
    return split_by_hash(pairs, "completion", fractions, salt)


def _edges(fractions: Mapping[str, float]) -> list[tuple[str, float]]:
    """(name, upper end) of each split on [0, 1)."""
    if any(share < 0 for share in fractions.values()) or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-9):
        raise UserError(f"fractions: {dict(fractions)} must be 0 or more and add up to 1; change the shares")
    names, total = list(fractions), 0.0
    edges = []
    for name in names:
        total += fractions[name]
        edges.append((name, total))
    last = max(i for i, name in enumerate(names) if fractions[name] > 0)
    return [*edges[:last], (names[last], 1.0)]  # not 0.999... from rounding; shares of 0 after it get nothing


def _field_reader(name: str) -> Callable[[Any], Any]:
    def read(item: Any) -> Any:
        if isinstance(item, Mapping):
            if name not in item:
                raise UserError(f"split: an item has no field '{name}'{nearest(name, map(str, item))}")
            return item[name]
        if not hasattr(item, name):
            raise UserError(f"split: a {type(item).__name__} has no field '{name}'; name one that holds text")
        return getattr(item, name)

    return read
