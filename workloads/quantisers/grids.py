"""Rounding to the nearest value of a small grid."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

from workloads.quantisers.base import Array, blocks

Ties = Literal["down", "up", "away"]
"""Where a value half-way between two grid points goes: to the lower one, to the higher one, or away from zero."""
LARGEST_TABLE = 1 << 18


class Grid:
    """Ascending values; `ties` says where half-way values go."""

    def __init__(self, values: tuple[float, ...], ties: Ties) -> None:
        self.values = np.array(sorted(values), np.float32)
        self.ties = ties

    @cached_property
    def largest(self) -> float:
        return float(np.abs(self.values).max())

    @cached_property
    def middles(self) -> tuple[Fraction, ...]:
        points = [Fraction(float(v)) for v in self.values]
        return tuple((a + b) / 2 for a, b in pairwise(points))

    @cached_property
    def _table(self) -> tuple[np.float32, int, Array] | None:
        """(pieces per unit, first piece, index by piece): between multiples of 1 / pieces nothing changes. None where that is too many."""
        pieces = max(m.denominator for m in self.middles)
        first = int(self.middles[0] * pieces) - 2
        last = int(self.middles[-1] * pieces) + 2
        if pieces & (pieces - 1) or last - first >= LARGEST_TABLE or (self.ties == "away" and 0 in self.middles):
            return None
        pieces_of = np.arange(first, last + 1)
        middles = np.array([int(m * pieces) for m in self.middles])
        below = np.searchsorted(middles, pieces_of, "left")  # middles before this multiple
        until = np.searchsorted(middles, pieces_of, "right")  # and at it
        if self.ties == "down":
            index = below  # the piece (i - 1, i]
        elif self.ties == "up":
            index = until  # the piece [i, i + 1)
        else:
            index = np.where(pieces_of > 0, until, below)
        return np.float32(pieces), first, index.astype(np.uint8 if len(self.values) <= 256 else np.uint16)

    def index(self, values: Array) -> Array:
        """Index of the grid value nearest to each fp32 value, of the same shape."""
        flat = np.ascontiguousarray(values, np.float32).ravel()
        out = np.empty(flat.size, np.uint8 if len(self.values) <= 256 else np.uint16)
        start = 0
        for part in blocks(flat):
            out[start : start + part.size] = self._index(part)
            start += part.size
        return out.reshape(values.shape)

    def _index(self, part: Array) -> Array:
        if self._table is None:
            middles = np.array([float(m) for m in self.middles])
            low, high = (np.searchsorted(middles, part, side) for side in ("left", "right"))
            return low if self.ties == "down" else high if self.ties == "up" else np.where(part < 0, low, high)
        scale, first, table = self._table
        scaled = part * scale
        {"down": np.ceil, "up": np.floor, "away": np.trunc}[self.ties](scaled, out=scaled)
        np.clip(scaled, first, first + len(table) - 1, out=scaled)
        scaled -= first
        return table.take(scaled.astype(np.int32))

    def nearest(self, values: Array) -> Array:
        """The grid value nearest to each value."""
        return self.values.take(self.index(values))
