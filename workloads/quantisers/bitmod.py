"""BitMoD: 3- and 4-bit floats whose redundant minus zero is, group by group, one of four special values.

Chen et al., "BitMoD: Bit-serial Mixture-of-Datatype LLM Acceleration", HPCA 2025, arXiv:2411.11745.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from workloads.quantisers.base import (
    LEAST_SCALE,
    Array,
    Field,
    Fields,
    Quantiser,
    Shape,
    blocks,
    channels,
    float_field,
    floats,
    grouped,
    largest,
)
from workloads.quantisers.grids import Grid

MAGNITUDES = {3: (0.0, 1.0, 2.0, 4.0), 4: (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)}
"""Values of the magnitude codes: FP3 without mantissa, FP4 = E2M1."""
SPECIAL = {3: (3.0, -3.0, 6.0, -6.0), 4: (5.0, -5.0, 8.0, -8.0)}
"""Special values by selector: two that fill a gap (extra resolution), two that extend the range (extra asymmetry)."""
LARGEST_SCALE = 1e4
"""The authors' quantiser limits scales to [1e-5, 1e4]."""


@lru_cache
def grid(bits: int, selector: int) -> Grid:
    """The values of a group with one of the four special values; half-way values go to the lower one."""
    basic = [sign * m for m in MAGNITUDES[bits] for sign in (1, -1) if m or sign > 0]
    return Grid((*basic, SPECIAL[bits][selector]), "down")


@lru_cache
def codes_of(bits: int, selector: int) -> Array:
    """The code of each value of a grid, in ascending order: sign, then magnitude; minus zero is the special value."""
    half = 1 << (bits - 1)
    by_value = {(-m if sign else m): sign * half + i for i, m in enumerate(MAGNITUDES[bits]) for sign in (0, 1) if m or not sign}
    by_value[SPECIAL[bits][selector]] = half
    return np.array([by_value[float(v)] for v in grid(bits, selector).values], np.uint8)


@lru_cache
def values_of(bits: int) -> Array:
    """[selector, code] values."""
    table = np.zeros((4, 1 << bits), np.float32)
    for selector in range(4):
        table[selector, codes_of(bits, selector)] = grid(bits, selector).values
    return table


class BitMod(Quantiser):
    """For each group the special value of least squared error, the first among equals; s = max |w| / max |grid| in fp16.

    The scales of an output channel are then stored as 8-bit multiples of its largest over 127 (fp32), at least 1.
    """

    def encode(self, values: Array) -> Fields:
        rows, bits = grouped(values, self.format), self.format.element_bits
        codes = np.empty(rows.shape, np.uint8)
        selectors = np.empty(len(rows), np.uint8)
        scales = np.empty(len(rows), np.float32)
        start = 0
        for part in blocks(rows):
            here = slice(start, start + len(part))
            codes[here], selectors[here], scales[here] = self._best(part, bits)
            start += len(part)
        scale = scales.reshape(len(channels(values)), -1)
        unit = scale.max(axis=1, keepdims=True) / np.float32(127)
        multiples = np.maximum(np.rint(scale / unit), 1).astype(np.uint8)
        return {
            "code": Field(codes.reshape(values.shape), bits, "value"),
            "scale": Field(multiples.ravel(), 8, "group"),
            "selector": Field(selectors, 2, "group"),
            "unit": float_field(unit[:, 0], 32, "channel"),
        }

    def _best(self, rows: Array, bits: int) -> tuple[Array, Array, Array]:
        """(codes, selectors, scales) of some groups."""
        top = largest(rows)
        codes = np.empty(rows.shape, np.uint8)
        chosen, scales = np.zeros(len(rows), np.uint8), np.zeros(len(rows), np.float32)
        least = np.full(len(rows), np.inf)
        ratio, scale, reach = rows, top, 0.0
        for selector in range(4):
            points = grid(bits, selector)
            if points.largest != reach:
                reach = points.largest
                scale = np.clip(top / np.float32(reach), LEAST_SCALE, LARGEST_SCALE).astype(np.float16).astype(np.float32)
                ratio = rows / scale
            index = points.index(ratio)
            difference = points.values.take(index)
            difference -= ratio
            error = np.einsum("ij,ij->i", difference, difference) * scale[:, 0].astype(np.float64) ** 2
            better = error < least
            least[better], chosen[better], scales[better] = error[better], selector, scale[better, 0]
            codes[better] = codes_of(bits, selector).take(index[better])
        return codes, chosen, scales

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        rows, bits = grouped(fields["code"].values.reshape(shape), self.format), self.format.element_bits
        unit = floats(fields["unit"])
        scale = (fields["scale"].values.reshape(len(unit), -1) * unit[:, None]).reshape(-1, 1)
        base = (fields["selector"].values.astype(np.uint8) << np.uint8(bits))[:, None]
        table = values_of(bits).ravel()
        out = np.empty(rows.shape, np.float32)
        start = 0
        for part in blocks(rows):
            here = slice(start, start + len(part))
            np.multiply(table.take(part | base[here]), scale[here], out=out[here])
            start += len(part)
        return out.reshape(shape)
