"""Requests on devices: continuous batching whose iterations cost what the mapped simulation says."""

from dovetail.serving.errors import ServingError
from dovetail.serving.front import serve

__all__ = ["ServingError", "serve"]
