"""What a running study tells: on a terminal a bar with rate, time left and the best so far, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from dovetail.human import digits, seconds

PATIENCE_S = 10.0
"""Seconds between lines where stderr is not a terminal."""


class Progress(Protocol):
    """Told how many of how many evaluations are done, and the best so far in words."""

    def __call__(self, done: int, total: int, best: str) -> None: ...

    def close(self) -> None: ...


class Silent:
    """Tells nothing."""

    def __call__(self, done: int, total: int, best: str) -> None:
        return None

    def close(self) -> None:
        return None


class Shown:
    """Tells stderr. Nothing is shown of a study that is over at once."""

    def __init__(self, name: str, lines: bool = True) -> None:
        self._name, self._lines = name, lines
        self._start = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                       TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[best]}"))  # fmt: skip
            self._bar = Bar(*columns, console=Console(stderr=True))

    def __call__(self, done: int, total: int, best: str) -> None:
        now = time.monotonic()
        rate = done / (now - self._start) if now > self._start else 0.0
        if self._bar is not None:
            if self._task is None:
                self._bar.start()
                self._task = self._bar.add_task(self._name, total=total, rate="", best="")
            self._bar.update(self._task, completed=done, total=total, rate=f"{digits(rate)}/s", best=best)
        elif self._lines and done and now - self._last > PATIENCE_S:
            self._last = now
            left = f", {seconds((total - done) / rate)} left" if rate else ""
            print(f"dovetail: {self._name}: {done} of {total}, {digits(rate)}/s{left}{f'; {best}' if best else ''}", file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.stop()
