"""BitMoD: a bit-serial processing element for weights of mixed data types and fp16 activations.

Chen et al., "BitMoD: Bit-serial Mixture-of-Datatype LLM Acceleration", HPCA 2025, arXiv:2411.11745.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, Literal

import numpy as np

from hw.bits import Array, pack, unpack
from hw.errors import HardwareError
from hw.gemm import codes_of, every_pair, gemm, integers, matrices, shapes
from hw.number import FLOATS
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Gemm, Work

WeightFormat = Literal["int8", "int6", "fp4", "fp3"]
TERMS = {"int8": 4, "int6": 3, "fp4": 2, "fp3": 2}
"""Bit-serial terms, and so cycles, per weight."""
WIDTH = {"int8": 8, "int6": 6, "fp4": 4, "fp3": 3}
LANES = 4
MAGNITUDES = {"fp4": (0, 1, 2, 3, 4, 6, 8, 12), "fp3": (0, 2, 4, 8)}
"""Twice the values of the magnitude codes."""
SPECIAL = {"fp4": (10, -10, 16, -16), "fp3": (6, -6, 12, -12)}
"""Twice the special values, of which one per group takes the place of minus zero: two fill a gap, two extend the range."""
GUARD = 3
"""Bits kept below an aligned significand."""
HEADROOM = 6
"""Bits below a partial sum's last in the accumulator: 24 bits of magnitude less the 18 of a partial sum."""
UNIT = 25 + GUARD + 1 + HEADROOM
"""An accumulator with exponent u counts units of 2^(u - UNIT); 25 is fp16's bias plus its fraction bits."""
DEQUANTISE = 8
"""Cycles to multiply a group's sum by its scale, one bit each."""


def doubled_values(codes: Any, select: Any, form: WeightFormat) -> Array:
    """Twice the value of each weight code; `select` picks the special value of a code's group."""
    codes = np.asarray(codes, np.int64)
    width = WIDTH[form]
    if form in ("int8", "int6"):
        return np.asarray(2 * np.where(codes >> (width - 1) & 1, codes - (1 << width), codes))
    half = 1 << (width - 1)
    magnitude = np.array(MAGNITUDES[form])[codes & (half - 1)]
    value = np.where(codes & half, -magnitude, magnitude)
    return np.asarray(np.where(codes == half, np.array(SPECIAL[form])[select], value))


def terms(codes: Any, select: Any, form: WeightFormat) -> tuple[Array, Array, Array, int]:
    """(sign, exponent, one, number) arrays of shape [terms, ...]: a weight is the sum of (-1)^sign one 2^(exponent + shift).

    Integers are recoded in radix 4 (Booth); for small floats the leading one of the integer bits comes first, then the
    leading one of what is left of the lower integer bits and the fraction bit. `shifts` gives the shift of each term.
    """
    codes, select = np.asarray(codes, np.int64), np.asarray(select, np.int64)
    found: list[tuple[Any, Any, Any]] = []
    if form in ("int8", "int6"):
        for i in range(TERMS[form]):
            low = codes >> (2 * i - 1) & 1 if i else np.zeros_like(codes)
            digit = low + (codes >> 2 * i & 1) - 2 * (codes >> (2 * i + 1) & 1)
            found.append((digit < 0, np.abs(digit) == 2, digit != 0))
    else:
        value = doubled_values(codes, select, form)
        magnitude, negative = np.abs(value), value < 0
        integer = magnitude >> 1
        first = np.where(integer > 0, np.frexp(integer.astype(float))[1] - 1, 0)
        rest = np.where(integer > 0, magnitude - (2 << first), magnitude)
        second = np.where(rest > 0, np.frexp(rest.astype(float))[1] - 1, 0)
        found = [(negative, first, integer > 0), (negative, second, rest > 0)]
    sign, exponent, one = (np.stack([np.asarray(term[i], np.int64) for term in found]) for i in range(3))
    return sign, exponent, one, len(found)


def shifts(form: WeightFormat) -> tuple[int, ...]:
    """The power of two that each term's exponent counts from."""
    return tuple(2 * i for i in range(TERMS[form])) if form in ("int8", "int6") else (0, -1)


def round_shift(values: Array, amount: Any) -> Array:
    """`values` / 2^`amount`, rounded to nearest, ties to even."""
    amount = np.minimum(amount, 60)
    quotient = values >> amount
    rest = values - (quotient << amount)
    half = np.where(amount > 0, np.int64(1) << np.maximum(amount - 1, 0), np.int64(1))
    up = (amount > 0) & ((rest > half) | ((rest == half) & (quotient & 1 == 1)))
    return np.asarray(quotient + up)


class BitmodPe(Unit, kind="bitmod_pe", executes={"gemm"}):
    """Four weights times four fp16 activations, one bit-serial term of each weight per cycle, in groups along K.

    Within a cycle the four products are aligned to the largest exponent with three guard bits, rounding to nearest even, and
    added. The accumulator has a sign and 24 bits, its exponent follows the largest partial sum, and what falls off when
    sums are aligned rounds to nearest even; the paper leaves its width open. The sum of a group is then multiplied by its 8-bit
    scale bit by bit, beside the next group, exactly, and leaves as fp32. Activations with the exponent of infinities and NaNs
    count as the numbers next in line.
    """

    weights: WeightFormat = "fp4"
    group: Count = 128

    def _groups(self, k: int) -> list[int]:
        return [min(self.group, k - start) for start in range(0, k, self.group)]

    def cycles(self, work: Work) -> int:
        """The terms of each group's weights, four weights at a time, but at least nine cycles from group to group.

        The last group then takes two cycles through partial sum and accumulator, one into the dequantiser and eight in it.

        >>> BitmodPe(weights="fp4", group=128).cycles(Gemm(1, 1, 256, "fp16"))
        139
        """
        work = gemm(work)
        lengths = [ceil(size / LANES) * TERMS[self.weights] for size in self._groups(work.k)] * (work.m * work.n)
        return lengths[0] + sum(max(length, DEQUANTISE + 1) for length in lengths[1:]) + 2 + 1 + DEQUANTISE

    def formats(self) -> frozenset[str]:
        return frozenset({"fp16"})

    def macs_per_cycle(self, number_format: str) -> int:
        return -(-LANES // TERMS[self.weights]) if number_format == "fp16" else 0

    def golden(self, *operands: Any) -> Array:
        """fp32 codes [M, N, groups] from fp16 codes [M, K], weight codes [K, N], selectors and scales [groups, N].

        Selectors pick a special value and have no meaning for integer weights.
        """
        left, codes = matrices(operands[0], codes_of(16), operands[1], codes_of(WIDTH[self.weights]))
        select, scales = integers("selectors", operands[2], codes_of(2)), integers("scales", operands[3], codes_of(8))
        if not select.shape == scales.shape == (ceil(left.shape[1] / self.group), codes.shape[1]):
            groups = f"[{ceil(left.shape[1] / self.group)}, {codes.shape[1]}]"
            raise HardwareError(f"expected {groups} selectors and scales, found {list(select.shape)} and {list(scales.shape)}")
        results = []
        for number, size in enumerate(self._groups(left.shape[1])):
            part = slice(number * self.group, number * self.group + size)
            padding = -size % LANES
            acts = np.pad(left[:, part], ((0, 0), (0, padding))).reshape(len(left), 1, -1, LANES)
            weights = np.pad(codes[part], ((0, padding), (0, 0))).T.reshape(1, codes.shape[1], -1, LANES)
            sums, exponent = self._accumulate(acts, weights, select[number, :, None, None])
            product = sums * scales[number]
            results.append(np.ldexp(product.astype(np.float64), exponent - UNIT).astype(np.float32))
        return np.stack(results, axis=-1).view(np.uint32).astype(np.int64)

    def _accumulate(self, acts: Array, weights: Array, select: Array) -> tuple[Array, Array]:
        field, fraction = acts >> 10 & 31, acts & 1023
        significand, base = fraction + np.where(field > 0, 1024, 0), np.maximum(field, 1)
        shape = np.broadcast_shapes(acts.shape[:2], weights.shape[:2])
        held, scale = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        sign, exponent, one, count = terms(weights, select, self.weights)
        for step in range(acts.shape[2]):
            for number in range(count):
                some = (one[number][:, :, step] > 0) & (significand[:, :, step] > 0)
                reach = np.where(some, base[:, :, step] + exponent[number][:, :, step], 0)
                top = reach.max(axis=-1)
                aligned = round_shift(np.where(some, significand[:, :, step] << GUARD, 0), top[..., None] - reach)
                negative = (acts[:, :, step] >> 15 & 1) ^ sign[number][:, :, step]
                partial = np.where(negative, -aligned, aligned).sum(axis=-1) << HEADROOM
                own = np.where(partial != 0, top + shifts(self.weights)[number] + 1, 0)
                common = np.maximum(scale, own)
                sum_ = round_shift(held, common - scale) + round_shift(partial, common - own)
                over = np.abs(sum_) >= 1 << 24
                held = np.where(over, round_shift(sum_, 1), sum_)
                scale = common + over
        return held, scale

    def cases(self, rng: Any) -> Iterator[Case]:
        for number, (m, n, k) in enumerate(shapes(rng, (1, 1, self.group + 5), largest=1)):
            if number % 3 == 2:
                acts = rng.integers(0, 1 << 16, (m, k))
            else:
                acts = FLOATS["fp16"].encode(rng.normal(size=(m, k)) * 2.0 ** rng.integers(-8, 8, (m, k)), saturate=True)
            groups = len(self._groups(k))
            weights = rng.integers(0, 1 << WIDTH[self.weights], (k, n))
            yield Case(Gemm(m, n, k, "fp16"), (acts, weights, rng.integers(0, 4, (groups, n)), rng.integers(0, 256, (groups, n))))

    def whole_space(self) -> Iterator[Case]:
        """Every weight code with every special value, in each lane, times one and times the largest activation."""
        count = 1 << WIDTH[self.weights]
        for activation in (0x3C00, 0x7BFF):
            codes = every_pair(1, count, LANES)[1]
            weights, select = np.tile(codes, 4), np.repeat(np.arange(4), count)[None]
            acts = np.full((1, LANES), activation)
            yield Case(Gemm(1, 4 * count, LANES, "fp16"), (acts, weights, select, np.ones_like(select)))

    @classmethod
    def samples(cls) -> tuple[BitmodPe, ...]:
        return (cls(group=16), cls(weights="fp3", group=24), cls(weights="int6", group=12), cls(weights="int8", group=8))

    def rtl(self) -> Any:
        from hw.rtl.bitmod_pe import BitmodPeRtl

        return BitmodPeRtl(self.weights)

    def results(self, work: Work) -> int:
        work = gemm(work)
        return work.m * work.n * len(self._groups(work.k))

    def encode(self, *operands: Any) -> list[int]:
        left, codes, select, scales = (np.asarray(x, np.int64) for x in operands)
        (m, k), n = left.shape, codes.shape[1]
        rows: list[tuple[Array, ...]] = []
        for number, size in enumerate(self._groups(k)):
            part = slice(number * self.group, number * self.group + size)
            padding, steps = -size % LANES, ceil(size / LANES)
            acts = np.pad(left[:, part], ((0, 0), (0, padding))).reshape(m, 1, steps, LANES)
            weights = np.pad(codes[part], ((0, padding), (0, 0))).T.reshape(1, n, steps, LANES)
            shape = (m, n, steps)
            closes = np.arange(steps) == steps - 1
            fields = (acts, weights, select[number][None, :, None, None], scales[number][None, :, None, None], closes[None, None, :, None])
            rows.append(tuple(np.broadcast_to(f, shape + f.shape[3:]) for f in fields))
        joined = [np.concatenate(parts, axis=2).reshape(-1, parts[0].shape[3]) for parts in zip(*rows, strict=True)]
        return pack(*zip(joined, (16, 8, 2, 8, 1), strict=True))

    def decode(self, words: list[int], work: Work) -> Array:
        work = gemm(work)
        return unpack(words, (1, 32, False))[0].reshape(work.m, work.n, -1)

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.bitmod_pe import scaling_theorem, terms_theorem

        return {"terms_sum_to_the_weight": terms_theorem(self.weights), "bit_serial_scaling_is_a_product": scaling_theorem(6)}
