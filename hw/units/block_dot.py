"""Dot products of blocks with shared exponents: OCP Microscaling (MX) formats and block floating point (BFP).

OCP Microscaling Formats (MX) Specification v1.0; BFP as in Microsoft's MSFP (Rouhani et al., NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from hw.bits import Array, pack, unpack
from hw.errors import HardwareError
from hw.gemm import codes_of, dot_words, every_pair, gemm, integers, matrices, shapes
from hw.number import FLOATS
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Gemm, Work

MxElement = Literal["fp8-e4m3", "fp8-e5m2", "fp6-e3m2", "fp6-e2m3", "fp4", "int8"]
SCALE_BIAS = 127
HALF = 17
"""Bits of the low half of an element whose products with others are too wide for float64."""
LATENCY = 4
"""Cycles from the last block of a result to the result: products, adder tree, conversion to fp32, accumulation."""


@dataclass(frozen=True, slots=True)
class Element:
    """How the codes of a block's elements become signed integers times 2^-`fraction`.

    `form` names a float format of `hw.number`; `twos` and `magnitude` are two's complement and sign-magnitude integers.
    `scale_nan`: whether scale code 255 is NaN, as E8M0 has it.
    """

    form: str
    width: int
    fraction: int
    scale_nan: bool

    def integers(self, codes: Any) -> tuple[Array, Array]:
        """Signed significands and left shifts of codes; value = significand << shift, in units of 2^-`fraction`."""
        codes = np.asarray(codes, np.int64)
        match self.form:
            case "twos":
                value = np.where(codes >> (self.width - 1) & 1, codes - (1 << self.width), codes)
                return value, np.zeros_like(value)
            case "magnitude":
                magnitude = codes & ((1 << (self.width - 1)) - 1)
                return np.where(codes >> (self.width - 1) & 1, -magnitude, magnitude), np.zeros_like(codes)
        form = FLOATS[self.form]
        field = codes >> form.fraction & ((1 << form.exponent) - 1)
        significand = (codes & ((1 << form.fraction) - 1)) + np.where(field > 0, 1 << form.fraction, 0)
        return np.where(codes >> (self.width - 1) & 1, -significand, significand), np.maximum(field, 1) - 1

    def undefined(self, codes: Any) -> Array:
        """True for NaNs and infinities."""
        if self.form in ("twos", "magnitude"):
            return np.zeros(np.shape(codes), bool)
        return ~FLOATS[self.form].finite(codes)


def mx_element(name: MxElement) -> Element:
    if name == "int8":
        return Element("twos", 8, 6, True)  # 1.xxxxxx: the specification's implicit scale of 2^-6
    form = FLOATS[name]
    return Element(name, form.width, form.bias - 1 + form.fraction, True)


def block_products(element: Element, left: Any, right: Any) -> Array:
    """Exact sums of products of codes [M, K] and [K, N], as integers in units of 2^-(2 fraction).

    They are made in float64 where every sum is below 2^53. Formats of a wider range are cut into a high and a low half, whose
    products are, and put together as Python integers.
    """
    (a, i), (b, j) = element.integers(left), element.integers(right)
    a, b = a << i, b << j  # at most 33 bits: e5m2
    if a.shape[1] * int(np.abs(a).max(initial=0)) * int(np.abs(b).max(initial=0)) < 1 << 53:
        return np.asarray((a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64))
    (high_a, low_a), (high_b, low_b) = ((x >> HALF, x & ((1 << HALF) - 1)) for x in (a, b))
    parts = ((high_a, high_b, 2 * HALF), (high_a, low_b, HALF), (low_a, high_b, HALF), (low_a, low_b, 0))
    return np.asarray(sum((x.astype(np.float64) @ y.astype(np.float64)).astype(np.int64).astype(object) << shift for x, y, shift in parts))


def to_fp32(integers: Array, exponents: Array) -> Any:
    """float32 nearest to integer * 2^exponent, ties to even, by way of a float64 that rounds to odd."""
    if integers.dtype == object:
        excess = np.maximum(np.frexp(integers.astype(np.float64))[1].astype(np.int64) - 53, 0)
        high = integers >> excess.astype(object)
        lost = (high << excess.astype(object)) != integers
        integers, exponents = (high | lost.astype(np.int64).astype(object)).astype(np.int64), exponents + excess
    with np.errstate(over="ignore"):
        return np.ldexp(integers.astype(np.float64), exponents.astype(np.int64)).astype(np.float32)


class _BlockDot(Unit):
    """What MX and BFP dot products share: a block per cycle, exact within the block, fp32 from block to block."""

    block_size: Count = 32

    @property
    def element(self) -> Element:
        raise AttributeError("each block format states its elements")

    def cycles(self, work: Work) -> int:
        """A block along K per cycle and result, and four cycles from the last block to its result.

        >>> MxDot(element_format="fp4").cycles(Gemm(2, 3, 65, "mxfp4"))
        21
        """
        work = gemm(work)
        return work.m * work.n * ceil(work.k / self.block_size) - 1 + LATENCY

    def macs_per_cycle(self, number_format: str) -> int:
        return self.block_size if number_format in self.formats() else 0

    def golden(self, *operands: Any) -> Array:
        """fp32 codes [M, N] from codes [M, K], scales [M, blocks], codes [K, N], scales [blocks, N].

        Blocks are added in order, each sum rounded to fp32. A NaN or infinity among a block's elements, or a NaN scale, makes
        the result the quiet NaN: for infinities the specification leaves this to the implementation.
        """
        element = self.element
        limits = codes_of(element.width)
        left, right = matrices(operands[0], limits, operands[2], limits)
        left_scales, right_scales = (integers("scales", scales, codes_of(8)) for scales in operands[1::2])
        blocks = ceil(left.shape[1] / self.block_size)
        if left_scales.shape != (len(left), blocks) or right_scales.shape != (blocks, right.shape[1]):
            expected = f"[{len(left)}, {blocks}] and [{blocks}, {right.shape[1]}]"
            raise HardwareError(f"expected scales of {expected}, found {list(left_scales.shape)} and {list(right_scales.shape)}")
        running: Any = None
        lost = np.zeros((len(left), right.shape[1]), bool)
        for number in range(left_scales.shape[1]):
            part = slice(number * self.block_size, (number + 1) * self.block_size)
            a, b = left[:, part], right[part]
            scale_a, scale_b = left_scales[:, number, None], right_scales[None, number]
            term = to_fp32(block_products(element, a, b), scale_a + scale_b - 2 * (SCALE_BIAS + element.fraction))
            lost |= np.any(element.undefined(a), axis=1, keepdims=True) | np.any(element.undefined(b), axis=0)
            if element.scale_nan:
                lost |= (scale_a == 255) | (scale_b == 255)
            with np.errstate(invalid="ignore", over="ignore"):
                running = term if running is None else running + term
        code = np.asarray(running).view(np.uint32).astype(np.int64)
        return np.where(lost | np.isnan(running), FLOATS["fp32"].nan, code)

    def cases(self, rng: Any) -> Iterator[Case]:
        width, name = self.element.width, next(iter(self.formats()))
        for number, (m, n, k) in enumerate(shapes(rng, (1, 2, 2 * self.block_size), largest=1)):
            blocks = ceil(k / self.block_size)
            low, high = (0, 256) if number % 3 == 2 else (110, 140)
            operands: list[Array] = []
            for codes, scales in (((m, k), (m, blocks)), ((k, n), (blocks, n))):
                drawn = rng.integers(0, 1 << width, codes)
                if number % 3:
                    drawn = np.where(self.element.undefined(drawn), 0, drawn)
                operands += [drawn, rng.integers(low, high, scales)]
            yield Case(Gemm(m, n, k, name), tuple(operands))

    def whole_space(self) -> Iterator[Case]:
        """Every pair of element codes of up to 8 bits, in each lane, under scales of one."""
        count = 1 << self.element.width
        if self.element.width <= 8:
            ones = np.full((count, 1), SCALE_BIAS)
            left, right = every_pair(count, count, self.block_size)
            yield Case(Gemm(count, count, self.block_size, next(iter(self.formats()))), (left, ones, right, ones.T))

    def rtl(self) -> Any:
        from hw.rtl.block_dot import BlockDotRtl

        return BlockDotRtl(self.element, self.block_size)

    def results(self, work: Work) -> int:
        return gemm(work).m * gemm(work).n

    def encode(self, *operands: Any) -> list[int]:
        left, left_scales, right, right_scales = operands
        a, b, closes = dot_words(left, right, self.block_size)
        scale_a, scale_b, _ = dot_words(left_scales, right_scales, 1)
        return pack((a, self.element.width), (b, self.element.width), (scale_a, 8), (scale_b, 8), (closes, 1))

    def decode(self, words: list[int], work: Work) -> Array:
        return unpack(words, (1, 32, False))[0].reshape(gemm(work).m, gemm(work).n)

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.block_dot import conversion_theorem, element_theorem

        return {"element_product_is_exact": element_theorem(self.element), "conversion_to_fp32_is_ieee": conversion_theorem(20)}


class MxDot(_BlockDot, kind="mx_dot", executes={"gemm"}):
    """One block of `block_size` MX products per cycle, each operand's block with its own E8M0 scale."""

    element_format: MxElement = "fp4"

    @property
    def element(self) -> Element:
        return mx_element(self.element_format)

    def formats(self) -> frozenset[str]:
        return frozenset({{"int8": "mxint8"}.get(self.element_format, "mx" + self.element_format.split("-")[0])})

    @classmethod
    def samples(cls) -> tuple[MxDot, ...]:
        return (
            cls(block_size=8),
            cls(element_format="int8", block_size=8),
            cls(element_format="fp8-e4m3", block_size=8),
            cls(element_format="fp8-e5m2", block_size=4),
            cls(element_format="fp6-e3m2", block_size=8),
            cls(element_format="fp6-e2m3", block_size=8),
        )


class BfpDot(_BlockDot, kind="bfp_dot", executes={"gemm"}):
    """One block of products per cycle of sign and `magnitude_bits` each under a shared 8-bit exponent.

    An element is sign * q * 2^(E - magnitude_bits + 1) with E the block's exponent code less 127; every code is a number.
    """

    block_size: Count = 16
    magnitude_bits: Annotated[int, Field(ge=1, le=12)] = 3

    @property
    def element(self) -> Element:
        return Element("magnitude", 1 + self.magnitude_bits, self.magnitude_bits - 1, False)

    def formats(self) -> frozenset[str]:
        return frozenset({f"bfp{9 + self.magnitude_bits}"})

    @classmethod
    def samples(cls) -> tuple[BfpDot, ...]:
        return (cls(block_size=8), cls(block_size=5, magnitude_bits=7))
