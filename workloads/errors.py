"""The error that a user's mistake in a workload raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkloadError(ValueError):
    """A workload, format or trace that cannot be used; the message says where, what and the fix."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint naming the closest valid name, or an empty string.

    >>> nearest("llama-2-7", ["llama-2-7b", "opt-6.7b"])
    '; did you mean `llama-2-7b`?'
    """
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else ""
