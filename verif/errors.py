"""The error that a verification run raises when it cannot be carried out; a failed check is a result, not an error."""

from __future__ import annotations


class VerificationError(ValueError):
    """A tool that is missing, a unit that cannot be checked, or a file of vectors that cannot be read."""
