"""Terms of a word list in text. The list comes from the user: alignkit ships none, and prints no term."""

from __future__ import annotations

import re
from pathlib import Path

from data.readers import read_text
from launch.errors import UserError

Lexicon = re.Pattern[str]


def load_lexicon(path: str | Path) -> Lexicon:
    """A list with one term on each line (# begins a comment) as one pattern: whole words, any case, any white space."""
    lines = [line.strip() for line in read_text(Path(path)).split("\n")]
    terms = {line for line in lines if line and not line.startswith("#")}
    if not terms:
        raise UserError(f"{path}: the list has no term; write one on each line")
    return compile_lexicon(terms)


def compile_lexicon(terms: set[str]) -> Lexicon:
    """The pattern of a set of terms. A term matches where no letter or digit touches it."""
    ordered = sorted(terms, key=lambda term: (-len(term), term))
    alternatives = "|".join(r"\s+".join(re.escape(word) for word in term.split()) for term in ordered)
    return re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)


def count_terms(text: str, lexicon: Lexicon) -> int:
    """How many terms of the lexicon occur in a text. It cannot tell use from mention, nor harm from anatomy."""
    return sum(1 for _ in lexicon.finditer(text))
