"""A measurement file that cannot be used."""

from verif.errors import VerificationError


class MeasurementError(VerificationError):
    """Names the file, the row and the column, what was expected and what was found."""
