"""The range of a number in a config, declared on its field: `log_steps: PositiveInt = 10`.

`launch.config.build` checks every field of every config against it. For type checkers a field is what it was without.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above` and `below` leave the ends out. NaN and infinity lie in no range."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def fault(self, value: float) -> str:
        """What is wrong with a value and what to give instead; empty when nothing is."""
        too_low = value < self.low or (self.above and value == self.low)
        too_high = value > self.high or (self.below and value == self.high)
        if not math.isfinite(value):
            return "is no finite number; give one"
        if not too_low and not too_high:
            return ""
        if math.isfinite(self.low) and math.isfinite(self.high):
            ends = f"{'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"
            return f"is outside {ends}; give a number within"
        if too_high:
            return f"is above {self.high:g}; give a smaller number"
        known: dict[tuple[float, bool], str] = {
            (0, True): "a positive number",
            (0, False): "0 or more",
            (1, False): "a positive integer",
        }
        remedy = known.get((self.low, self.above), "a larger number")
        if self.low == 0 and not self.above:
            return f"is negative; give {remedy}"
        return f"is {'not above' if self.above else 'below'} {self.low:g}; give {remedy}"


AnyInt = Annotated[int, Range()]
AnyNumber = Annotated[float, Range()]
PositiveInt = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]


def ranges_of(cls: Any) -> dict[str, Range]:
    """Field name -> range of the fields of a config class that declare one, `X | None` included."""
    return _find_ranges(cls)


@functools.cache
def _find_ranges(cls: Any) -> dict[str, Range]:
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for option in (hint, *typing.get_args(hint)):
            for note in getattr(option, "__metadata__", ()):
                if isinstance(note, Range):
                    found[name] = note
    return found


def check_ranges(config: Any) -> None:
    """ValueError for the first field of a config that is outside of its range; its groups are checked when they are made."""
    for name, range_ in ranges_of(type(config)).items():
        value = getattr(config, name)
        if value is not None and (fault := range_.fault(value)):
            raise ValueError(f"{name}: {value} {fault}")
