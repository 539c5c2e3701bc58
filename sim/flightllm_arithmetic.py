"""What the machine computes with integers: the rules behind MV, MM and MISC, exact and in view.

Values are int8. The publication gives the units (int8 products, half-precision special functions) but not their rounding; these
rules are ours. Fractions: a multiplier operand is x / 128; the inputs of softmax and SiLU are x / 16; probabilities are x / 127;
normalised rows are x / 32. Every rule rounds to nearest, halves away from zero, and saturates.
"""

from __future__ import annotations

from functools import cache
from math import exp, isqrt

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
FRACTION = 7
INPUT = 16
ROW = 32
PROBABILITY = 127


def saturate(values: Integers) -> Integers:
    return np.clip(values, -128, 127)


def rounded_shift(values: Integers, bits: int) -> Integers:
    """values / 2^bits, halves away from zero.

    >>> rounded_shift(np.array([-6, -5, 5, 6]), 2).tolist()
    [-2, -1, 1, 2]
    """
    half = 1 << bits >> 1
    magnitude: Integers = (np.abs(values) + half) >> bits
    return np.sign(values) * magnitude


def requantise(sums: Integers, shift: int, relu: bool) -> Integers:
    """Sums of products as int8 of the next layer."""
    found = saturate(rounded_shift(sums, shift))
    return np.maximum(found, 0) if relu else found


def add(a: Integers, b: Integers) -> Integers:
    return saturate(a + b)


def mul(a: Integers, b: Integers) -> Integers:
    return saturate(rounded_shift(a * b, FRACTION))


def exchange(values: Integers) -> Integers:
    """The two halves of each 16 elements, exchanged: the partner of an element in a rotary embedding with permuted columns."""
    return values.reshape(-1, 2, 8)[:, ::-1].reshape(values.shape)


@cache
def _exponentials() -> Integers:
    """2^15 e^(-d/16) for d = 0..255; no entry lies near a rounding boundary, so any correctly working exp gives the same."""
    return np.array([round(2**15 * exp(-d / INPUT)) for d in range(256)])


def softmax(row: Integers, valid: int) -> Integers:
    """Probabilities of the first `valid` elements; the others get 0."""
    out = np.zeros_like(row)
    part = row[:valid]
    weights = _exponentials()[part.max() - part]
    total = int(weights.sum())
    out[:valid] = (2 * PROBABILITY * weights + total) // (2 * total)
    return out


def _scaled(values: list[int], norm: int, size: int) -> Integers:
    """ROW x value / sqrt(norm / size), rounded."""
    roots = [isqrt(4 * ROW**2 * v * v * size // norm) for v in values]
    return saturate(np.array([(root + 1) // 2 * (1 if v >= 0 else -1) for root, v in zip(roots, values, strict=True)]))


def rmsnorm(row: Integers) -> Integers:
    norm = int((row * row).sum())
    return np.zeros_like(row) if not norm else _scaled(row.tolist(), norm, len(row))


def layernorm(row: Integers) -> Integers:
    centred = row * len(row) - int(row.sum())
    norm = int((centred * centred).sum())
    return np.zeros_like(row) if not norm else _scaled(centred.tolist(), norm, len(row))


@cache
def _silu_table() -> Integers:
    return np.array([round(x / (1 + exp(-x / INPUT))) for x in range(-128, 128)])


def silu(values: Integers) -> Integers:
    return _silu_table()[values + 128]


ROWS = {"rmsnorm": rmsnorm, "layernorm": layernorm, "silu": silu}
PAIRS = {"add": add, "mul": mul}
