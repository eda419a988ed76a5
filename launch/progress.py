"""One progress display: rich on a terminal, a line every half minute elsewhere, nothing on the other ranks."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)
QUIET_PERIOD_S = 30.0
LABEL = "ALIGNKIT_LABEL"


def label() -> str:
    """The name that marks this process's lines when several stages of a lifecycle write to one terminal; else empty."""
    return os.environ.get(LABEL, "")


class Meter:
    """What a loop advances. `postfix` values are shown as `name=value`."""

    def advance(self, n: float = 1, **postfix: float) -> None:
        """Count `n` more units."""

    def note(self, text: str) -> None:
        """Show what goes on within a unit. Threads may call this."""


class _BarMeter(Meter):
    def __init__(self, bar: Progress, task: int) -> None:
        self.bar, self.task, self.start, self.done = bar, task, time.monotonic(), 0.0
        self.text = ""

    def advance(self, n: float = 1, **postfix: float) -> None:
        self.done += n
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        self.text = "  ".join([f"{rate:.3g}/s", *(f"{k}={v:.4g}" for k, v in postfix.items())])
        self.bar.update(self.task, advance=n, postfix=self.text)  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        self.bar.update(self.task, postfix=f"{self.text}  {text}")  # type: ignore[arg-type]


class _LineMeter(Meter):
    def __init__(self, description: str, total: float, done: float) -> None:
        self.description, self.total, self.done, self.first = description, total, done, done
        self.start = self.last = time.monotonic()

    def advance(self, n: float = 1, **postfix: float) -> None:
        self.done += n
        if not self._due():
            return
        rate = (self.done - self.first) / (self.last - self.start)
        pace = f"  {rate:.3g}/s  {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        values = "".join(f"  {k}={v:.4g}" for k, v in postfix.items())
        print(
            f"{self.description}: {self.done:g}/{self.total:g}{pace}{values}",
            file=sys.stderr,
            flush=True,
        )

    def note(self, text: str) -> None:
        if self._due():
            print(f"{self.description}: {self.done:g}/{self.total:g}  {text}", file=sys.stderr, flush=True)

    def _due(self) -> bool:
        """Whether nothing was said for a while; from now on it counts as said."""
        now = time.monotonic()
        if now - self.last < QUIET_PERIOD_S:
            return False
        self.last = now
        return True


@contextlib.contextmanager
def progress(total: float, description: str, done: float = 0, visible: bool = True) -> Iterator[Meter]:
    """A display for a loop of `total` units of which `done` are done already."""
    if not visible:
        yield Meter()
    elif label() or not console.is_terminal:  # two bars of two processes would overwrite each other
        yield _LineMeter(f"[{label()}] {description}" if label() else description, total, done)
    else:
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, TextColumn("{task.fields[postfix]}"), console=console, transient=True) as bar:
            yield _BarMeter(bar, bar.add_task(description, total=total, completed=done, postfix=""))  # type: ignore[arg-type]
