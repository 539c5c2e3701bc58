"""The error that a user's mistake in a device description raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class HardwareError(ValueError):
    """A device, unit, memory or quantity that cannot be used; the message says where, what was expected and what was found.

    `items` holds the single mistakes as (path, reason) when a description has several.
    """

    def __init__(self, message: str = "", items: Sequence[tuple[str, str]] = ()) -> None:
        self.items = tuple(items) or (("", message),)
        super().__init__(message or "\n".join(f"{path}: {reason}" if path else reason for path, reason in self.items))

    def within(self, where: str) -> HardwareError:
        """The same mistakes, each placed in `where`."""
        return HardwareError(items=[(": ".join(p for p in (where, path) if p), reason) for path, reason in self.items])


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint naming the closest valid name, or an empty string.

    >>> nearest("bandwith", ["bandwidth", "capacity"])
    '; did you mean `bandwidth`?'
    """
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean `{matches[0]}`?" if matches else ""
