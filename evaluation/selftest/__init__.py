"""`alignkit evaluate selftest`: known answers of the metrics, on the machine that will measure with them."""

from evaluation.selftest.command import main
from evaluation.selftest.registry import KnownAnswer

__all__ = ["KnownAnswer", "main"]
