"""Choices and defaults that configs name, apart from the code that follows them, which imports torch and scipy."""

from __future__ import annotations

from typing import Literal

SCHEMA_VERSION = 2
"""Of results.json. A report reads no other, and what an evaluation wrote in another is not up to date.

2: each part of `evaluate text` (documents, tasks, completions) is a result of its own; 1 had them in one.
"""
BATCH_TOKENS = 8192
"""Tokens in one batch of an evaluation, padding included."""
Ties = Literal["half", "wrong"]
"""What a pair with equal rewards counts in an accuracy."""
