"""Choices and defaults that configs name, apart from the code that follows them, which imports torch and scipy."""

from __future__ import annotations

from typing import Literal

BATCH_TOKENS = 8192
"""Tokens in one batch of an evaluation, padding included."""
Ties = Literal["half", "wrong"]
"""What a pair with equal rewards counts in an accuracy."""
