"""OliVe: outliers in four bits by sacrificing their neighbours, multiplied as exponent-integer pairs.

Guo et al., "OliVe: Accelerating Large Language Models via Hardware-friendly Outlier-Victim Pair Quantization", ISCA 2023,
arXiv:2304.07493; `flint4` is from Guo et al., "ANT", MICRO 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, Literal

import numpy as np

from hw.bits import Array, pack, unpack
from hw.gemm import codes_of, dot_words, every_pair, gemm, matrices, shapes, wrap
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Gemm, Work

NormalFormat = Literal["int4", "flint4"]
IDENTIFIER = 0b1000
"""The code of a victim: the one that int4 gives up and that flint4 would spend on minus zero."""
BIAS = {"int4": 2, "flint4": 3}
"""Exponent bias of the outlier format abfloat, so that outliers begin above the largest normal value."""


def normal_tables(form: NormalFormat) -> tuple[Array, Array]:
    """(exponent, integer) of the 16 codes of a normal value; value = integer << exponent. The identifier is zero."""
    code = np.arange(16)
    if form == "int4":
        return np.zeros(16, np.int64), np.where(code == IDENTIFIER, 0, np.where(code > 7, code - 16, code))
    exponent, integer = np.zeros(16, np.int64), np.zeros(16, np.int64)
    for magnitude in range(8):
        if magnitude < 4:
            pair = (0, magnitude)
        elif magnitude == 4:  # nothing but the top bit: the largest power
            pair = (4, 1)
        else:
            zeros = 1 if magnitude == 5 else 0  # leading zeros of the low two bits
            fraction_bits = 1 - zeros
            pair = (2 + zeros - fraction_bits, (1 << fraction_bits) | (magnitude & fraction_bits))
        for sign in (0, 1):
            exponent[sign * 8 + magnitude], integer[sign * 8 + magnitude] = pair[0], (1 - 2 * sign) * pair[1]
    return exponent, integer


def outlier_tables(form: NormalFormat) -> tuple[Array, Array]:
    """(exponent, integer) of the 16 abfloat codes: sign, two bits of exponent, one of fraction; magnitude code 0 is zero."""
    code = np.arange(16)
    magnitude = code & 7
    exponent = np.where(magnitude, (magnitude >> 1) + BIAS[form], 0)
    integer = np.where(magnitude, 2 + (magnitude & 1), 0)
    return exponent, np.where(code > 7, -integer, integer)


def decode_pairs(pairs: Any, form: NormalFormat) -> tuple[Array, Array]:
    """(exponent, integer), each [..., 2], of outlier-victim pairs: one byte, the even element in its low half.

    Two identifiers, a byte that no encoder writes, decode to two zeros.
    """
    pairs = np.asarray(pairs, np.int64)
    halves = np.stack([pairs & 15, pairs >> 4], axis=-1)
    outlier = halves[..., ::-1] == IDENTIFIER
    normal, abfloat = normal_tables(form), outlier_tables(form)
    victim = halves == IDENTIFIER
    exponent, integer = (np.where(outlier, b[halves], a[halves]) for a, b in zip(normal, abfloat, strict=True))
    return np.where(victim, 0, exponent), np.where(victim, 0, integer)


def values_of(pairs: Any, form: NormalFormat) -> Array:
    """The integers that outlier-victim pairs stand for, [..., 2]."""
    exponent, integer = decode_pairs(pairs, form)
    return np.asarray(integer << exponent)


def encode_pairs(values: Any, form: NormalFormat) -> Array:
    """Pairs [..., 2] of real numbers, already divided by the scale, to bytes.

    A value whose magnitude is nearer to an outlier than the largest normal one is an outlier and its neighbour a victim; of two
    outliers the even one is kept. Ties go to the larger magnitude, as in the authors' code.
    """
    values = np.asarray(values, np.float64)
    normal, outlier = (integer << exponent for exponent, integer in (normal_tables(form), outlier_tables(form)))
    largest = normal.max()
    beyond = np.abs(values) > (largest + np.abs(outlier)[outlier != 0].min()) / 2

    def nearest(table: Array, skip: Array) -> Array:
        distance = np.abs(values[..., None] - table)
        distance = np.where(skip, np.inf, distance)
        order = np.argsort(-np.abs(table), kind="stable")
        return np.asarray(order[np.argmin(distance[..., order], axis=-1)])

    plain = nearest(normal, np.arange(16) == IDENTIFIER)
    special = nearest(outlier, (np.arange(16) & 7) == 0)
    even = beyond[..., 0]
    odd = beyond[..., 1] & ~even
    low = np.where(even, special[..., 0], np.where(odd, IDENTIFIER, plain[..., 0]))
    high = np.where(odd, special[..., 1], np.where(even, IDENTIFIER, plain[..., 1]))
    return np.asarray(low | high << 4)


class OliveMac(Unit, kind="olive_mac", executes={"gemm"}):
    """`pairs` outlier-victim pairs of activations times as many of weights per cycle, summed in 32 bits.

    Products of <a, b> and <c, d> are (b d) << (a + c). A Gemm's K counts elements, two to a pair.
    """

    pairs: Count = 8
    activations: NormalFormat = "int4"
    weights: NormalFormat = "int4"

    def cycles(self, work: Work) -> int:
        """A step of 2 x `pairs` along K per cycle and result, after decoder, adder tree and accumulator, a cycle each.

        >>> OliveMac(pairs=8).cycles(Gemm(2, 3, 34, "int4"))
        20
        """
        work = gemm(work)
        return work.m * work.n * ceil(work.k / (2 * self.pairs)) - 1 + 3

    def formats(self) -> frozenset[str]:
        return frozenset({"int4"})

    def macs_per_cycle(self, number_format: str) -> int:
        return 2 * self.pairs if number_format == "int4" else 0

    def golden(self, *operands: Any) -> Array:
        """[M, N] sums modulo 2^32 from bytes [M, K/2] and [K/2, N]."""
        left, right = matrices(operands[0], codes_of(8), operands[1], codes_of(8))
        a = values_of(left, self.activations).reshape(len(left), -1)
        b = values_of(right.T, self.weights).reshape(right.shape[1], -1)
        return wrap(a @ b.T, 32)

    def cases(self, rng: Any) -> Iterator[Case]:
        for m, n, k in shapes(rng, (2, 2, 2 * self.pairs)):
            yield Case(Gemm(m, n, 2 * k, "int4"), (rng.integers(0, 256, (m, k)), rng.integers(0, 256, (k, n))))

    def whole_space(self) -> Iterator[Case]:
        """Every byte of activations with every byte of weights, in each lane."""
        yield Case(Gemm(256, 256, 2 * self.pairs, "int4"), every_pair(256, 256, self.pairs))

    @classmethod
    def samples(cls) -> tuple[OliveMac, ...]:
        return (cls(), cls(pairs=3, activations="flint4"), cls(pairs=2, activations="flint4", weights="flint4"))

    def rtl(self) -> Any:
        from hw.rtl.olive_mac import OliveMacRtl

        return OliveMacRtl(self.pairs, self.activations, self.weights)

    def results(self, work: Work) -> int:
        return gemm(work).m * gemm(work).n

    def encode(self, *operands: Any) -> list[int]:
        a, b, closes = dot_words(operands[0], operands[1], self.pairs)
        return pack((a, 8), (b, 8), (closes, 1))

    def decode(self, words: list[int], work: Work) -> Array:
        return unpack(words, (1, 32, True))[0].reshape(gemm(work).m, gemm(work).n)

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.olive_mac import decoder_theorem, product_theorem

        return {"decoder_equals_table": decoder_theorem(self.activations), "product_equals_integers": product_theorem()}
