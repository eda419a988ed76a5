"""Text for people: numbers at the precision of their intervals, and hostile text made harmless.

Model output is data from a stranger. Jinja and markupsafe escape HTML; here invisible and direction-changing
characters are made visible, since they can reorder or hide what a reader sees without any tag.
"""

from __future__ import annotations

import hashlib
import math
import re

MINUS, DASH, ELLIPSIS = "\u2212", "\u2013", "\u2026"
LONGEST = 4000
"""Characters of one text that a page shows."""
LONGEST_NAME = 120

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = "\u00ad\u200b-\u200d\u2028\u2029\u2060-\u2065\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_CONTROLS = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff{_BIDI}{_INVISIBLE}]")


def visible(text: str) -> str:
    """`text` with control, direction and zero-width characters (and lone surrogates) written as ⟨U+202E⟩.

    Newlines and tabs stay; a carriage return before a newline goes.
    """
    return _CONTROLS.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text.replace("\r\n", "\n"))


def shorten(text: str, limit: int = LONGEST) -> str:
    """At most `limit` characters, with the number of those left out."""
    return text if len(text) <= limit else f"{text[:limit]}{ELLIPSIS} [{len(text) - limit:,} more characters]"


def short_name(name: str) -> str:
    """A name of at most about 120 characters; of a longer one the beginning and a hash, so that two stay two."""
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}{ELLIPSIS} {digest}"


def decimals_for(half_width: float | None, value: float) -> int:
    """Decimal places that show two significant digits of an interval's half-width (four of a value without one)."""
    if half_width and math.isfinite(half_width):
        return min(6, max(0, 1 - math.floor(math.log10(half_width))))
    if value == 0 or not math.isfinite(value):
        return 0
    return min(6, max(0, 3 - math.floor(math.log10(abs(value)))))


def format_number(value: float | None, decimals: int | None = None) -> str:
    """A number with a true minus sign and thin groups of thousands; an en dash for None."""
    if value is None:
        return DASH
    places = decimals_for(None, value) if decimals is None else decimals
    text = f"{value:,.{places}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS).replace(",", "\u202f")


def format_interval(low: float | None, high: float | None, decimals: int) -> str:
    """`[low, high]`, or nothing when there is no interval."""
    if low is None or high is None:
        return ""
    return f"[{format_number(low, decimals)}, {format_number(high, decimals)}]"


def format_p(p: float | None) -> str:
    """A p-value as the field writes it."""
    if p is None:
        return DASH
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def format_seconds(seconds: float) -> str:
    """A duration: `8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def csv_text(text: str) -> str:
    """Text for a spreadsheet cell: one that begins like a formula gets an apostrophe before it (OWASP CSV injection)."""
    clean = visible(text)
    return f"'{clean}" if clean.lstrip().startswith(("=", "+", "-", "@", "\t")) or clean.startswith("\t") else clean


_MARKDOWN = str.maketrans(
    {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "|": "&#124;",
        "\n": " ",
        "\t": " ",
        **{c: f"\\{c}" for c in "\\`*_{}[]#!~$"},
    }
)


def markdown_text(text: str) -> str:
    """Text for a Markdown table cell: no HTML, no pipe, no line break, no markup. Links are not made clickable."""
    return visible(text).translate(_MARKDOWN).replace("://", ":&#47;&#47;")
