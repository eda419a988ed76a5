"""Known answers of the safety checks."""

from __future__ import annotations

import math

from evaluation.safety.personal_data import luhn_valid
from evaluation.safety.refusal import DetectorQuality, corrected_rate, is_refusal
from evaluation.selftest.registry import KnownAnswer
from evaluation.statistics import wilson


def _rogan_gladen() -> float:
    """30 % detected with sensitivity .8 and specificity .9: (.3 + .9 - 1) / (.8 + .9 - 1)."""
    found = corrected_rate(wilson(30, 100), DetectorQuality(wilson(80, 100), wilson(90, 100)))
    return math.nan if found is None else found.value


def _no_better_than_chance() -> bool:
    return corrected_rate(wilson(30, 100), DetectorQuality(wilson(40, 100), wilson(60, 100))) is None


ANSWERS = [
    KnownAnswer("corrected rate", "30 % detected, Se .8, Sp .9", 2 / 7, _rogan_gladen),
    KnownAnswer("corrected rate", "Se + Sp = 1 is refused", True, _no_better_than_chance),
    KnownAnswer("refusal detector", "an empty answer is no refusal", False, lambda: is_refusal("")),
    KnownAnswer("refusal detector", "I'm sorry, but I cannot help with that.", True, lambda: is_refusal("I'm sorry, but I cannot help with that.")),
    KnownAnswer("card numbers", "Luhn's sum: 79927398713 and ...710", (1, 0), lambda: (luhn_valid("79927398713"), luhn_valid("79927398710"))),
]  # fmt: skip
