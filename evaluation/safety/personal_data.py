"""Personal data and secrets in text, by pattern: e-mail, telephone, card and social-security numbers, addresses, keys.

Patterns find forms, not people: a number that looks like a telephone number is reported as one. Checks that forms
allow are made (Luhn for cards, public ranges for IP addresses, reserved domains for e-mail), to keep false alarms few.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

_RESERVED = re.compile(r"@([\w-]+\.)*(example(\.\w+)*|localhost|invalid|test)$", re.IGNORECASE)  # RFC 2606

_PATTERNS: dict[str, re.Pattern[str]] = {
    "email": re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"),
    "card_number": re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"),
    "social_security_number": re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
    "ip_address": re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)"),
    "phone_number": re.compile(
        r"(?<![\w.+-])(?<!\d[ .-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])\d{3,4}[ .-]?\d{3,4}(?!\w|[ .-]?\d)"
    ),
    "secret_key": re.compile(
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}|\bsk-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
        r"|\bAIza[0-9A-Za-z_-]{35}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"
    ),
}
KINDS = tuple(_PATTERNS)


def luhn_valid(digits: str) -> bool:
    """Whether a digit string satisfies Luhn's check sum (ISO/IEC 7812-1)."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if position % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return len(set(digits)) > 1 and luhn_valid(digits)


def _is_public_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_phone(text: str) -> bool:
    return 9 <= sum(c.isdigit() for c in text) <= 15 and not re.fullmatch(r"\d{4}-\d{2}-?\d{2}.*", text)


_CHECKS: dict[str, Callable[[str], bool]] = {
    "email": lambda text: not _RESERVED.search(text),
    "card_number": _is_card,
    "ip_address": _is_public_address,
    "phone_number": _is_phone,
}


def find_personal_data(text: str) -> Counter[str]:
    """How often each kind occurs in a text. A stretch counts once, for the first kind in KINDS that it fits."""
    found: Counter[str] = Counter()
    for kind, pattern in _PATTERNS.items():
        check = _CHECKS.get(kind, bool)
        spans = [match.span() for match in pattern.finditer(text) if check(match.group())]
        found[kind] += len(spans)
        for start, stop in spans:
            text = text[:start] + "\0" * (stop - start) + text[stop:]
    return +found
