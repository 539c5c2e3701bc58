"""Mistakes in what a server is asked to do."""

from __future__ import annotations


class ServingError(ValueError):
    """A server that cannot be simulated as asked; the message says where, what was expected and what was found."""
