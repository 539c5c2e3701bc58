"""L-Mul: floating-point products from one integer addition, and a dot product of eight of them.

Luo and Sun, "Addition is All You Need for Energy-efficient Language Models", arXiv:2410.00907, 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, Literal

import numpy as np

from hw.bits import Array, pack, unpack
from hw.errors import HardwareError
from hw.gemm import codes_of, dot_words, every_pair, gemm, integers, matrices, shapes, vector
from hw.number import FLOATS, Float
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Gemm, Vector, Work

LmulFormat = Literal["bf16", "fp16", "fp8-e4m3", "fp8-e5m2"]


def offset_bits(fraction: int) -> int:
    """The paper's l(m): the constant that stands for the product of the fractions is 2^-l(m).

    >>> [offset_bits(m) for m in (2, 3, 4, 7)]
    [2, 3, 3, 4]
    """
    return fraction if fraction <= 3 else 3 if fraction == 4 else 4


def product(form: Float, x: Any, y: Any) -> Array:
    """L-Mul of two arrays of codes, bit by bit as the adder does it.

    Magnitude codes are added and the exponent bias less the constant is subtracted: a carry out of the fractions raises the
    exponent, which makes this Mitchell's logarithmic product with an offset. The paper leaves open what follows; here
    subnormal operands count as zero, results below the smallest normal value become zero, larger ones than the largest
    finite value (and infinite operands) that value; NaN and zero times infinity give the quiet NaN.
    """
    x, y = np.asarray(x, np.int64), np.asarray(y, np.int64)
    top = form.width - 1
    smallest, mask = 1 << form.fraction, (1 << top) - 1
    a, b = x & mask, y & mask
    sign = (x ^ y) & (1 << top)
    code = a + b - (form.bias << form.fraction) + (1 << (form.fraction - offset_bits(form.fraction)))
    infinity = form.largest + 1 if form.specials == "ieee" else form.largest + 2
    zero, infinite = (a < smallest) | (b < smallest), (a == infinity) | (b == infinity)
    nan = (a >= infinity + (form.specials == "ieee")) | (b >= infinity + (form.specials == "ieee")) | (zero & infinite)
    if form.specials == "fn":
        nan = (a > form.largest) | (b > form.largest)
    code = np.where(infinite | (code > form.largest), form.largest, code)
    code = np.where(zero | (code < smallest), 0, code) | sign
    return np.where(nan, form.nan, code)


def codes(rng: Any, form: Float, shape: tuple[int, ...], *, wild: bool) -> Array:
    """Random codes: any bits at all when `wild`, else values of normally distributed numbers."""
    if wild:
        return np.asarray(rng.integers(0, 1 << form.width, shape))
    return form.encode(rng.normal(size=shape) * 4.0, saturate=True)


class Lmul(Unit, kind="lmul"):
    """`lanes` L-Mul multipliers, one product each per cycle, in one cycle."""

    format: LmulFormat = "bf16"
    lanes: Count = 1

    @property
    def form(self) -> Float:
        return FLOATS[self.format]

    def cycles(self, work: Work) -> int:
        """A word of `lanes` products per cycle.

        >>> Lmul(lanes=4).cycles(Vector(elements=9))
        3
        """
        return ceil(vector(work).elements / self.lanes)

    def golden(self, *operands: Any) -> Array:
        """Codes of the products of two vectors of codes; see `product`."""
        x, y = (integers("codes", each, codes_of(self.form.width)) for each in operands)
        if x.shape != y.shape:
            raise HardwareError(f"expected as many codes on either side, found {list(x.shape)} and {list(y.shape)}")
        return product(self.form, x, y)

    def cases(self, rng: Any) -> Iterator[Case]:
        for number, (size, _, _) in enumerate(shapes(rng, (2 * self.lanes, 1, 1), largest=8)):
            wild = number % 3 > 0
            yield Case(Vector(size), (codes(rng, self.form, (size,), wild=wild), codes(rng, self.form, (size,), wild=wild)))

    def whole_space(self) -> Iterator[Case]:
        """Every pair of 8-bit codes, rotated so that each lane meets all of them."""
        if self.form.width == 8:
            for lane in range(self.lanes):
                pair = np.roll(np.arange(1 << 16), lane)
                yield Case(Vector(1 << 16), (pair >> 8, pair & 255))

    @classmethod
    def samples(cls) -> tuple[Lmul, ...]:
        return (cls(), cls(format="fp8-e4m3", lanes=4), cls(format="fp8-e5m2", lanes=3), cls(format="fp16", lanes=2))

    def rtl(self) -> Any:
        from hw.rtl.lmul import LmulRtl

        return LmulRtl(self.form, self.lanes)

    def results(self, work: Work) -> int:
        return ceil(vector(work).elements / self.lanes)

    def encode(self, *operands: Any) -> list[int]:
        rows = [np.asarray(x, np.int64) for x in operands]
        padded = [np.pad(x, (0, -len(x) % self.lanes)).reshape(-1, self.lanes) for x in rows]
        return pack(*((x, self.form.width) for x in padded))

    def decode(self, words: list[int], work: Work) -> Array:
        return unpack(words, (self.lanes, self.form.width, False))[0].reshape(-1)[: vector(work).elements]

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.lmul import adder_theorem

        return {"equals_one_addition": adder_theorem(self.form)}


class LmulDot8(Unit, kind="lmul_dot8", executes={"gemm"}):
    """Eight L-Mul products per cycle, added in fp32: product 0 first, then 1 to 7 in turn, then the running sum."""

    format: LmulFormat = "bf16"

    @property
    def form(self) -> Float:
        return FLOATS[self.format]

    def cycles(self, work: Work) -> int:
        """A step of eight along K per cycle and result; nine cycles pass from the last step to its result.

        >>> LmulDot8().cycles(Gemm(2, 3, 17, "bf16"))
        26
        """
        work = gemm(work)
        return work.m * work.n * ceil(work.k / 8) - 1 + 9

    def formats(self) -> frozenset[str]:
        return frozenset({self.format})

    def macs_per_cycle(self, number_format: str) -> int:
        return 8 if number_format == self.format else 0

    def golden(self, *operands: Any) -> Array:
        """fp32 codes [M, N] from codes [M, K] and [K, N]; zeros pad K to whole steps of eight."""
        code = codes_of(self.form.width)
        left, right = matrices(operands[0], code, operands[1], code)
        padding = -left.shape[1] % 8
        left, right = np.pad(left, ((0, 0), (0, padding))), np.pad(right, ((0, padding), (0, 0)))
        products = self.form.decode(product(self.form, left[:, None, :], right.T[None])).astype(np.float32)
        running: Any = None
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, products.shape[2], 8):
                step = products[:, :, start]
                for lane in range(1, 8):
                    step = step + products[:, :, start + lane]
                running = step if running is None else running + step
        result = np.asarray(running).view(np.uint32).astype(np.int64)
        return np.where(np.isnan(running), FLOATS["fp32"].nan, result)

    def cases(self, rng: Any) -> Iterator[Case]:
        for number, (m, n, k) in enumerate(shapes(rng, (1, 1, 12), largest=1)):
            left, right = (codes(rng, self.form, shape, wild=number % 3 == 2) for shape in ((m, k), (k, n)))
            yield Case(Gemm(m, n, k, self.format), (left, right))

    def whole_space(self) -> Iterator[Case]:
        """Every pair of 8-bit codes in each lane."""
        if self.form.width == 8:
            yield Case(Gemm(256, 256, 8, self.format), every_pair(256, 256, 8))

    @classmethod
    def samples(cls) -> tuple[LmulDot8, ...]:
        return (cls(), cls(format="fp8-e4m3"))

    def rtl(self) -> Any:
        from hw.rtl.lmul import LmulDotRtl

        return LmulDotRtl(self.form, 8)

    def results(self, work: Work) -> int:
        return gemm(work).m * gemm(work).n

    def encode(self, *operands: Any) -> list[int]:
        a, b, closes = dot_words(operands[0], operands[1], 8)
        return pack((a, self.form.width), (b, self.form.width), (closes, 1))

    def decode(self, words: list[int], work: Work) -> Array:
        return unpack(words, (1, 32, False))[0].reshape(gemm(work).m, gemm(work).n)

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.float import sum_theorem
        from hw.rtl.lmul import adder_theorem

        return {"products_equal_one_addition": adder_theorem(self.form), "sum_is_ieee_at_fp16": sum_theorem(FLOATS["fp16"])}
