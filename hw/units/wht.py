"""Walsh-Hadamard transform of integer vectors, as used before quantising keys and values to few bits."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator

from hw.bits import Array, pack, unpack
from hw.errors import HardwareError
from hw.gemm import integers, shapes, vector
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Vector, Work


def hadamard(points: int) -> Array:
    """Sylvester's matrix: H(1) = [1], H(2n) = [[H, H], [H, -H]]."""
    matrix = np.ones((1, 1), np.int64)
    while len(matrix) < points:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


class Wht128(Unit, kind="wht128"):
    """One vector of `points` signed integers of `width` bits per cycle through log2(points) stages of butterflies.

    Not normalised: results are exact and `width` + log2(points) bits wide; 1/sqrt(points) belongs to the scale.
    """

    points: Count = 128
    width: Annotated[int, Field(ge=1, le=32)] = 8

    @field_validator("points")
    @classmethod
    def _power(cls, points: int) -> int:
        if not 2 <= points <= 1 << 16 or points & (points - 1):
            raise HardwareError(f"expected a power of two from 2 to {1 << 16}, found {points}")
        return points

    @property
    def stages(self) -> int:
        return self.points.bit_length() - 1

    def cycles(self, work: Work) -> int:
        """A vector per cycle, a cycle per stage. `work` counts elements.

        >>> Wht128().cycles(Vector(elements=1280))
        16
        """
        return ceil(vector(work).elements / self.points) - 1 + self.stages

    def golden(self, *operands: Any) -> Array:
        """[V, points] transforms of integers [V, points]."""
        half = 1 << (self.width - 1)
        values = integers("values", operands[0], (-half, half - 1))
        if values.ndim != 2 or values.shape[1] != self.points:
            raise HardwareError(f"expected vectors [V, {self.points}], found {list(values.shape)}")
        return np.asarray(values @ hadamard(self.points))

    def cases(self, rng: Any) -> Iterator[Case]:
        low, high = -(1 << (self.width - 1)), (1 << (self.width - 1)) - 1
        for number, (size, _, _) in enumerate(shapes(rng, (4, 1, 1))):
            shape = (size, self.points)
            values = rng.choice([low, high], shape) if number % 2 else rng.integers(low, high + 1, shape)
            yield Case(Vector(size * self.points), (values,))

    @classmethod
    def samples(cls) -> tuple[Wht128, ...]:
        return (cls(points=16), cls(points=2, width=5), cls(points=32, width=4))

    def rtl(self) -> Any:
        from hw.rtl.wht import WhtRtl

        return WhtRtl(self.points, self.width)

    def results(self, work: Work) -> int:
        return ceil(vector(work).elements / self.points)

    def encode(self, *operands: Any) -> list[int]:
        return pack((operands[0], self.width))

    def decode(self, words: list[int], work: Work) -> Array:
        return unpack(words, (self.points, self.width + self.stages, True))[0]

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.wht import butterfly_theorem

        return {"butterflies_equal_matrix": butterfly_theorem(min(self.points, 4), self.width)}
