"""ANT: one of four 4-bit data types per tensor: integer, flint, power of two or float.

Guo et al., "ANT: Exploiting Adaptive Numerical Data Type for Low-bit Deep Neural Network Quantization", MICRO 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from workloads.format import Format
from workloads.quantisers.base import LEAST_SCALE, Array, Field, Fields, Quantiser, Shape, blocks, channels, float_field, floats, largest
from workloads.quantisers.grids import Grid

TYPES = ("int", "flint", "pot", "float")


def flint_magnitudes(bits: int) -> tuple[int, ...]:
    """Values of the magnitude codes of `bits`.

    The top bit clear: the code itself. Set: z leading zeros in the bits below and, behind the one that ends them, a fraction f; the value
    is 2^(bits - 1 + z) (1 + f); no one below at all: the largest power, 2^(2 bits - 2).

    >>> flint_magnitudes(3)
    (0, 1, 2, 3, 16, 8, 4, 6)
    """
    values = []
    for code in range(1 << bits):
        if not code >> (bits - 1):
            values.append(code)
            continue
        low = code & ((1 << (bits - 1)) - 1)
        if not low:
            values.append(1 << (2 * bits - 2))
            continue
        zeros = bits - 1 - low.bit_length()
        width = bits - 2 - zeros
        fraction = low & ((1 << width) - 1)
        values.append(((1 << width) + fraction) << (bits - 1 + zeros - width))
    return tuple(values)


@lru_cache
def magnitudes(kind: str) -> tuple[int, ...]:
    """Values of the eight magnitude codes of a 4-bit type; floats are E2M1, doubled."""
    return {
        "int": tuple(range(8)),
        "flint": flint_magnitudes(3),
        "pot": (0, *(1 << i for i in range(7))),
        "float": (0, 1, 2, 3, 4, 6, 8, 12),
    }[kind]


@lru_cache
def grid(kind: str) -> Grid:
    """All values of a type; half-way values go to the larger magnitude, as in the authors' quantiser of OliVe."""
    return Grid(tuple(float(sign * m) for m in magnitudes(kind) for sign in (1, -1) if m or sign > 0), "away")


@lru_cache
def codes_of(kind: str) -> Array:
    """The code (sign, then magnitude code) of each value of a grid, in ascending order."""
    by_value = {(-m if sign else m): sign * 8 + code for code, m in enumerate(magnitudes(kind)) for sign in (0, 1) if m or not sign}
    return np.array([by_value[int(v)] for v in grid(kind).values], np.uint8)


class Ant(Quantiser):
    """Nearest value times a scale per output channel, max |w| / max |grid|; the type of least squared error over the tensor, the first
    among equals. `flint4` and `pot4` have one type only."""

    def __init__(self, format: Format) -> None:
        super().__init__(format)
        self.types = {"flint4": ("flint",), "pot4": ("pot",)}.get(format.name, TYPES)

    def encode(self, values: Array) -> Fields:
        rows = channels(values)
        top = largest(rows)
        kind = self.types[0]
        if len(self.types) > 1:
            errors = {kind: self._error(rows, top, kind) for kind in self.types}
            kind = min(errors, key=lambda k: errors[k])
        scale = np.maximum(top / np.float32(grid(kind).largest), LEAST_SCALE).astype(np.float32)
        codes = np.empty(rows.shape, np.uint8)
        start = 0
        for part in blocks(rows):
            here = slice(start, start + len(part))
            codes[here] = codes_of(kind).take(grid(kind).index(part / scale[here]))
            start += len(part)
        return {
            "code": Field(codes.reshape(values.shape), 4, "value"),
            "scale": float_field(scale[:, 0], 32, "channel"),
            "type": Field(np.array([TYPES.index(kind)], np.uint8), 2, "tensor"),
        }

    def _error(self, rows: Array, top: Array, kind: str) -> float:
        points, total, start = grid(kind), 0.0, 0
        scale = np.maximum(top / np.float32(points.largest), LEAST_SCALE).astype(np.float32)
        for part in blocks(rows):
            own = scale[start : start + len(part)]
            ratio = part / own
            difference = points.nearest(ratio)
            difference -= ratio
            total += float((np.einsum("ij,ij->i", difference, difference) * own[:, 0].astype(np.float64) ** 2).sum())
            start += len(part)
        return total

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        kind = TYPES[int(fields["type"].values[0])]
        positive = np.array(magnitudes(kind), np.float32)
        rows = channels(np.concatenate([positive, -positive]).take(fields["code"].values.reshape(shape)))
        rows *= floats(fields["scale"])[:, None]
        return rows.reshape(shape)
