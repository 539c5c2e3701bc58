"""The error that a user's mistake in an exploration raises."""

from __future__ import annotations


class ExploreError(ValueError):
    """A study, space, objective or store that cannot be used; the message says where, what was expected and what was found."""


class StoreError(ExploreError):
    """A store that cannot be read or written; the message says what is safe in it and how to go on."""
