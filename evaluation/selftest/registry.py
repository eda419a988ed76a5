"""Known answers: cases whose exact result is known from a closed form or from the work that defines the metric.

To add one, write a line into ANSWERS of the module of its area (images.py, language.py, preferences.py, safety.py,
deepfake.py, statistics.py in this folder), with a function of its own or a lambda where one expression does:

    KnownAnswer("KID", "vectors of 0 against vectors of 1: (1 + 1)^3 - 1", 7.0, lambda: kernel_distance(zeros, ones).value)

`expected` is one number or a tuple of them, `tolerance` absolute. An answer takes milliseconds, downloads nothing, and
draws random numbers from launch/seeding.py alone. A new area is a module with ANSWERS and one line in AREAS. The test
of this folder breaks an answer to see the table and the exit code turn; a metric's own tests stay where they are.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

AREAS = ("statistics", "preferences", "language", "images", "safety", "deepfake")
"""The modules of this folder that hold ANSWERS."""
Number = float | int | bool
Numbers = Number | Sequence[Number]


@dataclass(frozen=True)
class KnownAnswer:
    """One case: what is computed, what must come out, and how near."""

    metric: str
    case: str
    expected: Numbers
    compute: Callable[[], Numbers]
    tolerance: float = 1e-9


@dataclass(frozen=True)
class Checked:
    """A known answer and what was found: numbers, or the error that stood in their way."""

    area: str
    answer: KnownAnswer
    found: tuple[float, ...]
    error: str = ""

    @property
    def expected(self) -> tuple[float, ...]:
        """The numbers that must come out."""
        return as_numbers(self.answer.expected)

    @property
    def deviation(self) -> float:
        """The largest absolute difference; infinite where the numbers are not as many, or not finite."""
        if self.error or len(self.found) != len(self.expected):
            return math.inf
        differences = [abs(a - b) for a, b in zip(self.found, self.expected, strict=True)]
        return max(differences) if all(map(math.isfinite, differences)) else math.inf

    @property
    def holds(self) -> bool:
        """Whether what was found is near enough."""
        return self.deviation <= self.answer.tolerance


def as_numbers(value: Numbers) -> tuple[float, ...]:
    """One number or several as a tuple of floats."""
    return tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),)


def check(area: str, answer: KnownAnswer) -> Checked:
    """Compute one answer. Whatever it raises is a finding, not the end of the others."""
    try:
        return Checked(area, answer, as_numbers(answer.compute()))
    except Exception as error:
        return Checked(area, answer, (), f"{type(error).__name__}: {error}")


def answers_of(area: str) -> list[KnownAnswer]:
    """The known answers of one area; its modules (torch among them) are imported now."""
    return list(importlib.import_module(f"evaluation.selftest.{area}").ANSWERS)


def run_answers(areas: Sequence[str] = AREAS) -> tuple[list[Checked], float]:
    """All answers of some areas, and the seconds that it took."""
    start = time.monotonic()
    return [check(area, answer) for area in areas for answer in answers_of(area)], time.monotonic() - start
