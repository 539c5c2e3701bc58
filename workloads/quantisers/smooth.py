"""SmoothQuant: the outliers of activations move into the weights, and both are int8.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023, arXiv:2211.10438.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workloads.errors import WorkloadError
from workloads.format import Format, parse_format
from workloads.quantisers.base import LEAST_SCALE, Array, Field, Fields, Quantiser, Shape, blocks, channels, float_field, floats, real
from workloads.quantisers.integer import Symmetric

ALPHA = 0.5
"""How much of the difficulty moves into the weights; the authors' default."""
SEED = 0
"""Of the activation ranges that stand in where none are given."""


def factors(activations: Array, weights: Array, alpha: float = ALPHA) -> Array:
    """One factor per input channel: max |x|^alpha / max |w|^(1 - alpha). Activations are divided by it, weights multiplied.

    `activations` are the largest magnitudes per input channel [K]; `weights` [..., K].
    """
    if not 0 <= alpha <= 1:
        raise WorkloadError(f"SmoothQuant: alpha: expected a number from 0 to 1, found {alpha}")
    largest = np.zeros(weights.shape[-1], np.float32)
    for part in blocks(channels(weights)):
        np.maximum(largest, np.abs(part).max(axis=0), out=largest)
    up, down = (np.maximum(x, LEAST_SCALE) for x in (activations, largest))
    return np.maximum(up**alpha / down ** (1 - alpha), LEAST_SCALE).astype(np.float32)


class SmoothQuant(Quantiser):
    """Weights times their factors, int8 with one scale per output channel; dequantising divides by the factors again.

    `activations` are the largest magnitudes of each input channel over calibration data. Without them, stated ones stand in: log-normal
    with a deviation of 1 and one channel in 128 a hundred times larger, as activation outliers are.
    """

    def __init__(self, format: Format, activations: Any = None, alpha: float = ALPHA) -> None:
        super().__init__(format)
        self.activations, self.alpha = activations, alpha

    def ranges(self, size: int) -> Array:
        """Largest magnitudes of the input channels."""
        if self.activations is None:
            rng = np.random.default_rng(SEED)
            drawn = rng.lognormal(0, 1, size)
            drawn[rng.choice(size, max(1, size // 128), replace=False)] *= 100
            return drawn.astype(np.float32)
        given = np.abs(real(self.activations, self.format))
        largest = given.max(axis=0) if given.ndim > 1 else given
        if largest.shape != (size,):
            raise WorkloadError(f"format {self.format}: expected activations of {size} input channels, found shape {given.shape}")
        return largest

    def encode(self, values: Array) -> Fields:
        own = factors(self.ranges(values.shape[-1]), values, self.alpha)
        fields = Symmetric(parse_format("int8-channel")).encode(values * own)
        return {**fields, "factor": float_field(own, 32, "channel")}

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        values = Symmetric(parse_format("int8-channel")).decode(fields, shape)
        values /= floats(fields["factor"])
        return values
