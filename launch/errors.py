"""The one exception for mistakes that a user can mend.

A `UserError` is one sentence: what is wrong, where, and what to do. Entry points print it without a
traceback and exit with code 2. Everything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # as shells give it: Ctrl-C, saved where there was something to save
EXIT_RESUMABLE = 75  # EX_TEMPFAIL, stopped or stuck: the same command resumes, so the scheduler may requeue the job


class UserError(ValueError):
    """Bad input: the message says what, where and what to do. Nothing was written or lost."""


MOST_NAMES = 16


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint like ``; did you mean 'seed'?``, or the valid names when none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(names) > MOST_NAMES:
        names = [*names[:MOST_NAMES], f"and {len(names) - MOST_NAMES} more"]
    return f"; valid names: {', '.join(names)}" if names else ""


REASON_FILE = "ALIGNKIT_REASON_FILE"
"""Where a stage of a lifecycle writes why it failed: the lifecycle says it, at once and as its last words."""


def leave_reason(text: str) -> bool:
    """Write why this process fails where a lifecycle asks for it, the first rank that does; False when none will say it."""
    try:
        with open(os.environ.get(REASON_FILE, ""), "x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        return isinstance(error, FileExistsError)
    return True


def errno_of(error: BaseException) -> int | None:
    """The errno behind an error. Libraries that write for us hide a full disk in the message of an error of their own."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    text = str(error).lower()
    full = "no space left" in text or "os error 28" in text or "unexpected pos" in text
    return errno.ENOSPC if full else None


def reason_of(error: BaseException) -> str:
    """What a library's error says, for the brackets of a sentence: its first line, or all of it where that line ends amid one."""
    text = str(error).strip()
    first = text.split("\n")[0].strip()
    whole = first if not first.endswith((":", ",", ";")) else " ".join(text.split())
    return whole.rstrip(".:,; ") or type(error).__name__
