"""Predictions against measured latencies: reading measurements, leaving out what is not physical, predicting, scoring."""

from verif.validation.measurement import Measurement
from verif.validation.score import Score, evaluate, rows
from verif.validation.sources import read

__all__ = ["Measurement", "Score", "evaluate", "read", "rows"]
