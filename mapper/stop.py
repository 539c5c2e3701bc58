"""When a search has to come to an end: after a time, or when it is interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """Reached `budget_s` seconds after it was made (never, where that is None), once `interrupt` was called, or with its `parent`."""

    def __init__(self, budget_s: float | None = None, parent: Stop | None = None) -> None:
        self._end = None if budget_s is None else time.monotonic() + budget_s
        self._parent = parent
        self._interrupted = False
        self.ended = False

    @property
    def limited(self) -> bool:
        """Whether there is a time limit."""
        return self._end is not None

    @property
    def interrupted(self) -> bool:
        return self._interrupted or (self._parent is not None and self._parent.interrupted)

    def interrupt(self) -> None:
        self._interrupted = True

    def reached(self) -> bool:
        """Whether it is time to stop; remembered in `ended`."""
        late = self._end is not None and time.monotonic() >= self._end
        self.ended = self.ended or late or self.interrupted or (self._parent is not None and self._parent.reached())
        return self.ended

    def share(self, parts: int) -> Stop:
        """A stop after one of `parts` equal shares of the time that is left."""
        if self._end is None:
            return self
        return Stop(max(0.0, self._end - time.monotonic()) / max(1, parts), self)


NEVER = Stop()
"""No limit."""


@contextmanager
def interruptible(stop: Stop) -> Iterator[None]:
    """Within it a first Ctrl-C makes `stop` reached instead of raising `KeyboardInterrupt`; a second one raises it. Outside the
    main thread, where there are no signals, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        stop.interrupt()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
