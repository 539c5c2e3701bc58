"""Softmax over a stream, numerically stable in one pass: the running maximum is a power of two, so that rescaling is a shift.

After Stevens et al., "Softermax: Hardware/Software Co-Design of an Efficient Softmax for Transformers", DAC 2021,
arXiv:2103.09301; widths and rounding are our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from hw.bits import Array, pack, unpack
from hw.errors import HardwareError
from hw.gemm import codes_of, integers, shapes, vector
from hw.number import FLOATS
from hw.unit import Unit
from hw.work import Case, Vector, Work

LOG2_E = 47274
"""log2(e) in units of 2^-15."""
LOG_FRACTION = 12
"""Fraction bits of an input in powers of two."""
INDEX_BITS = 6
"""Of those, the bits that choose an entry of the table of 2^f; the rest interpolates."""
POWER_FRACTION = 16
SUM_FRACTION = 24
DIVIDE = 30
"""Cycles of the division, one bit of the reciprocal each."""
TABLE = tuple(round(2 ** (POWER_FRACTION + i / (1 << INDEX_BITS))) for i in range((1 << INDEX_BITS) + 1))
"""2^(i / 64) in units of 2^-16, both ends included."""


def logarithms(codes: Any) -> Array:
    """Inputs times log2(e), in units of 2^-12, rounded to nearest even. An exponent of all ones is one more exponent."""
    codes = np.asarray(codes, np.int64)
    field, fraction = codes >> 10 & 31, codes & 1023
    product = (fraction + np.where(field > 0, 1024, 0)) * LOG2_E << 3
    amount = 31 - np.maximum(field, 1)
    quotient, rest = product >> amount, product & ((1 << amount) - 1)
    half = np.where(amount > 0, 1 << np.maximum(amount - 1, 0), 1)
    rounded = quotient + ((amount > 0) & ((rest > half) | ((rest == half) & (quotient & 1 == 1))))
    return np.asarray(np.where(codes >> 15 & 1, -rounded, rounded))


def powers(fractions: Any) -> Array:
    """2^f in units of 2^-16 for f in units of 2^-12, by linear interpolation."""
    fractions = np.asarray(fractions, np.int64)
    rest_bits = LOG_FRACTION - INDEX_BITS
    index, rest = fractions >> rest_bits, fractions & ((1 << rest_bits) - 1)
    table = np.array(TABLE)
    return np.asarray(table[index] + ((table[index + 1] - table[index]) * rest >> rest_bits))


class SoftmaxStream(Unit, kind="softmax_stream"):
    """Softmax of one vector of up to `longest` fp16 numbers at a time: one in per cycle, a division, one out per cycle.

    Results are fp16 codes within 2^-10 of the exact softmax, relatively, plus 2^-24: rounding to fp16 is half of that, the
    table, the sum and the reciprocal are the rest. -infinity counts as -65536, which masks an element as long as another is not.
    """

    longest: Annotated[int, Field(ge=1, le=1024)] = 1024

    def cycles(self, work: Work) -> int:
        """The vector in, three cycles to the sum, thirty of division, the vector out after three more.

        >>> SoftmaxStream().cycles(Vector(elements=1000))
        2034
        """
        elements = vector(work).elements
        if elements > self.longest:
            raise HardwareError(f"softmax_stream: expected a vector of at most {self.longest} elements (longest), found {elements}")
        return elements - 1 + 3 + DIVIDE + elements - 1 + 3

    def golden(self, *operands: Any) -> Array:
        """fp16 codes of the softmax over the last axis of fp16 codes."""
        codes = integers("codes", operands[0], codes_of(16))
        if not 1 <= codes.shape[-1] <= self.longest:
            raise HardwareError(f"expected vectors of 1 to {self.longest} elements (longest), found {codes.shape[-1]}")
        logs = logarithms(codes)
        whole, power = logs >> LOG_FRACTION, powers(logs & ((1 << LOG_FRACTION) - 1))
        top = whole[..., 0] + 1
        total = np.zeros_like(top)
        for i in range(logs.shape[-1]):
            above = np.maximum(top, whole[..., i] + 1)
            term = (power[..., i] << (SUM_FRACTION - POWER_FRACTION - 1)) >> np.minimum(above - whole[..., i] - 1, 63)
            total, top = (total >> np.minimum(above - top, 63)) + term, above
        reciprocal = (1 << (2 * SUM_FRACTION + 4)) // total
        exponent = whole - top[..., None] - POWER_FRACTION - SUM_FRACTION - 4
        return FLOATS["fp16"].encode(np.ldexp((power * reciprocal[..., None]).astype(np.float64), np.maximum(exponent, -1000)))

    def cases(self, rng: Any) -> Iterator[Case]:
        form = FLOATS["fp16"]
        for number, (size, _, _) in enumerate(shapes(rng, (max(self.longest // 2, 1), 1, 1), largest=1)):
            size = min(size, self.longest)
            if number % 3 == 2:
                codes = rng.integers(0, 1 << 16, size)
            else:
                codes = form.encode(rng.normal(size=size) * 2.0 ** rng.integers(-2, 7), saturate=True)
            yield Case(Vector(size), (codes,))

    def whole_space(self) -> Iterator[Case]:
        """Every code as an input."""
        codes = np.arange(1 << 16).reshape(256, 256).T.ravel()  # large and small ones in each vector
        for start in range(0, len(codes), self.longest):
            part = codes[start : start + self.longest]
            yield Case(Vector(len(part)), (part,))

    @classmethod
    def samples(cls) -> tuple[SoftmaxStream, ...]:
        return (cls(longest=24), cls(longest=7))

    def rtl(self) -> Any:
        from hw.rtl.softmax_stream import SoftmaxStreamRtl

        return SoftmaxStreamRtl(self.longest)

    def results(self, work: Work) -> int:
        return vector(work).elements

    def encode(self, *operands: Any) -> list[int]:
        codes = np.asarray(operands[0], np.int64)
        if len(codes) > self.longest:
            raise HardwareError(f"softmax_stream: expected a vector of at most {self.longest} elements (longest), found {len(codes)}")
        return pack((codes, 16), (np.arange(len(codes)) == len(codes) - 1, 1))

    def decode(self, words: list[int], work: Work) -> Array:
        return unpack(words, (1, 16, False))[0].reshape(-1)

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.softmax_stream import division_theorem, power_theorem

        return {"power_of_two_rises_within_an_octave": power_theorem(), "division_step_keeps_its_invariant": division_theorem()}
