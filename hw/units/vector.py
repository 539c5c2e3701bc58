"""A vector (SIMD) unit: lanes for arithmetic and lanes for transcendental functions."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from hw.quantity import Count
from hw.unit import Unit
from hw.work import Vector, Work


class VectorUnit(Unit, kind="vector", executes={"vector"}):
    """`lanes` arithmetic operations and `special_lanes` transcendental ones per cycle; the two do not overlap."""

    lanes: Count
    special_lanes: Count

    def cycles(self, work: Work) -> int:
        """Cycles for elementwise work on one copy.

        >>> VectorUnit(lanes=128, special_lanes=32).cycles(Vector(elements=1000, operations=2, specials=1))
        48
        """
        if not isinstance(work, Vector):
            return super().cycles(work)
        return ceil(work.elements * work.operations / self.lanes) + ceil(work.elements * work.specials / self.special_lanes)

    def least_cycles(self, work: Vector) -> Fraction:
        return Fraction(work.elements * work.operations, self.lanes) + Fraction(work.elements * work.specials, self.special_lanes)

    def operations_per_cycle(self) -> int:
        return self.lanes
