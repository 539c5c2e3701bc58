"""Ternary weights: a dot product by adding, subtracting or skipping activations.

The arithmetic of BitNet b1.58 and of the matrix unit of Zhu et al., "Scalable MatMul-free Language Modeling", arXiv:2406.02528.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from hw.bits import Array, pack, unpack
from hw.gemm import INT8, codes_of, dot_words, every_pair, gemm, matrices, shapes, wrap
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Gemm, Work


class TernaryRow(Unit, kind="ternary_row", executes={"gemm"}):
    """`lanes` int8 activations per cycle, each added, subtracted or skipped, into a sum of `accumulator_bits`.

    Weight codes have two bits: 0 is 0, 1 is +1, 3 is -1; 2 has no meaning and counts as 0.
    """

    lanes: Count = 8
    accumulator_bits: Annotated[int, Field(ge=2, le=62)] = 32

    def cycles(self, work: Work) -> int:
        """A step of `lanes` along K per cycle and result; the adder tree and the accumulator are a cycle each.

        >>> TernaryRow(lanes=8).cycles(Gemm(2, 3, 17, "ternary"))
        19
        """
        work = gemm(work)
        return work.m * work.n * ceil(work.k / self.lanes) - 1 + 2

    def formats(self) -> frozenset[str]:
        return frozenset({"ternary"})

    def macs_per_cycle(self, number_format: str) -> int:
        return self.lanes if number_format == "ternary" else 0

    def golden(self, *operands: Any) -> Array:
        """[M, N] sums from int8 [M, K] and weight codes [K, N]."""
        left, codes = matrices(operands[0], INT8, operands[1], codes_of(2))
        weights = np.array([0, 1, 0, -1])[codes]
        return wrap(left @ weights, self.accumulator_bits)

    def cases(self, rng: Any) -> Iterator[Case]:
        for m, n, k in shapes(rng, (2, 3, 2 * self.lanes)):
            yield Case(Gemm(m, n, k, "ternary"), (rng.integers(-128, 128, (m, k)), rng.integers(0, 4, (k, n))))

    def whole_space(self) -> Iterator[Case]:
        """Every activation with every code, in each lane."""
        left, codes = every_pair(256, 4, self.lanes)
        yield Case(Gemm(256, 4, self.lanes, "ternary"), (left - 128, codes))

    @classmethod
    def samples(cls) -> tuple[TernaryRow, ...]:
        return (cls(), cls(lanes=5, accumulator_bits=12))

    def rtl(self) -> Any:
        from hw.rtl.ternary_row import TernaryRowRtl

        return TernaryRowRtl(self.lanes, self.accumulator_bits)

    def results(self, work: Work) -> int:
        return gemm(work).m * gemm(work).n

    def encode(self, *operands: Any) -> list[int]:
        a, b, closes = dot_words(operands[0], operands[1], self.lanes)
        return pack((a, 8), (b, 2), (closes, 1))

    def decode(self, words: list[int], work: Work) -> Array:
        return unpack(words, (1, self.accumulator_bits, True))[0].reshape(gemm(work).m, gemm(work).n)

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.ternary_row import tree_theorem

        return {"sum_of_signed_activations": tree_theorem(self.lanes)}
