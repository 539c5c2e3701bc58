"""The error that a user's mistake raises while a workload is mapped."""

from __future__ import annotations


class MappingError(ValueError):
    """A workload that cannot be mapped, a mapping that does not apply or a program that cannot run; the message says why."""


class CapacityError(MappingError):
    """Something does not fit: the message names the memory, the missing bytes and the largest tensors."""
