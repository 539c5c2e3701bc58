"""LUT Tensor Core: products of int8 activations and 1- to 4-bit weights by looking up sums of four activations.

Mo et al., "LUT Tensor Core: A Software-Hardware Co-Design for LUT-Based Low-Bit LLM Inference", ISCA 2025, arXiv:2408.06003.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from hw.bits import Array, pack, unpack
from hw.gemm import INT8, codes_of, gemm, matrices, shapes, wrap
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Gemm, Work

GROUP = 4
"""Activations per table; the paper's K, where a table's 2^(K-1) entries and its adders balance."""


def odd_integers(codes: Any, bits: int) -> Array:
    """Unsigned weight codes q as the odd integers 2q - (2^bits - 1): each bit becomes a digit of +1 or -1.

    With the scale halved and the zero point moved to 2z + 1 - 2^bits, s(q - z) is unchanged.

    >>> odd_integers([0, 1, 2, 3], 2).tolist()
    [-3, -1, 1, 3]
    """
    return 2 * np.asarray(codes, np.int64) - ((1 << bits) - 1)


def pack_weights(codes: Any, bits: int) -> tuple[Array, Array]:
    """The offline packer: codes [..., 4] to table indices and signs, [bits, ...] each, plane 0 first.

    The digit of the first weight of a group decides the sign: where it is +1, the others are stored complemented, so that
    the core negates an entry and never an index.
    """
    codes = np.asarray(codes, np.int64)
    digits = codes[None] >> np.arange(bits).reshape((bits,) + (1,) * codes.ndim) & 1
    sign = digits[..., 0]
    others = digits[..., 1:] ^ sign[..., None]
    return (others << np.arange(GROUP - 1)).sum(axis=-1), sign


class LutTensorCore(Unit, kind="lut_tensor_core", executes={"gemm"}):
    """`rows` tables, each broadcast to `columns` multiplexers; one bit plane of four weights per column and cycle.

    A step of four along K takes `weight_bits` cycles: its activations arrive with plane 0. Weights are the odd integers of
    `odd_integers`; sums have 32 bits.
    """

    rows: Count = 2
    columns: Count = 64
    weight_bits: Annotated[int, Field(ge=1, le=4)] = 2

    def cycles(self, work: Work) -> int:
        """Bit planes of four along K, per block of rows x columns, one per cycle; table and accumulator are a cycle each.

        >>> LutTensorCore(rows=2, columns=64, weight_bits=2).cycles(Gemm(4, 100, 128, "int8"))
        257
        """
        work = gemm(work)
        return ceil(work.m / self.rows) * ceil(work.n / self.columns) * ceil(work.k / GROUP) * self.weight_bits - 1 + 2

    def formats(self) -> frozenset[str]:
        return frozenset({"int8"})

    def macs_per_cycle(self, number_format: str) -> int:
        return ceil(self.rows * self.columns * GROUP / self.weight_bits) if number_format == "int8" else 0

    def golden(self, *operands: Any) -> Array:
        """[M, N] sums from int8 [M, K] and unsigned weight codes [K, N] below 2^weight_bits."""
        left, codes = matrices(operands[0], INT8, operands[1], codes_of(self.weight_bits))
        return wrap(left @ odd_integers(codes, self.weight_bits), 32)

    def cases(self, rng: Any) -> Iterator[Case]:
        for number, (m, n, k) in enumerate(shapes(rng, (self.rows, self.columns, 2 * GROUP))):
            left = rng.choice([-128, 127], (m, k)) if number % 4 == 1 else rng.integers(-128, 128, (m, k))
            yield Case(Gemm(m, n, k, "int8"), (left, rng.integers(0, 1 << self.weight_bits, (k, n))))

    @classmethod
    def samples(cls) -> tuple[LutTensorCore, ...]:
        sizes = ((2, 8, 2), (1, 3, 1), (2, 3, 3), (3, 2, 4))
        return tuple(cls(rows=rows, columns=columns, weight_bits=bits) for rows, columns, bits in sizes)

    def rtl(self) -> Any:
        from hw.rtl.lut_tensor_core import LutTensorCoreRtl

        return LutTensorCoreRtl(self.rows, self.columns, self.weight_bits)

    def results(self, work: Work) -> int:
        return ceil(gemm(work).m / self.rows) * ceil(gemm(work).n / self.columns)

    def encode(self, *operands: Any) -> list[int]:
        left, codes = (np.asarray(x, np.int64) for x in operands)
        (m, k), n = left.shape, codes.shape[1]
        down, across, steps = ceil(m / self.rows), ceil(n / self.columns), ceil(k / GROUP)
        activations = np.pad(left, ((0, down * self.rows - m), (0, steps * GROUP - k)))
        activations = activations.reshape(down, self.rows, steps, GROUP).transpose(0, 2, 1, 3)
        weights = np.pad(codes, ((0, steps * GROUP - k), (0, across * self.columns - n)))
        weights = weights.reshape(steps, GROUP, across, self.columns).transpose(2, 0, 3, 1)
        index, sign = (part.transpose(1, 2, 0, 3) for part in pack_weights(weights, self.weight_bits))
        shape = (down, across, steps, self.weight_bits)

        def words(values: Array, *inner: int) -> Array:
            return np.broadcast_to(values, shape + inner).reshape(-1, *inner)

        plane = np.arange(self.weight_bits)
        last = (np.arange(steps)[:, None] == steps - 1) & (plane == self.weight_bits - 1)
        return pack(
            (words(activations[:, None, :, None], self.rows, GROUP), 8),
            (words(index[None], self.columns), 3),
            (words(sign[None], self.columns), 1),
            (words(plane), 2),
            (words(last), 1),
        )

    def decode(self, words: list[int], work: Work) -> Array:
        work = gemm(work)
        (values,) = unpack(words, (self.rows * self.columns, 32, True))
        down, across = ceil(work.m / self.rows), ceil(work.n / self.columns)
        blocks = values.reshape(down, across, self.rows, self.columns).transpose(0, 2, 1, 3)
        return blocks.reshape(down * self.rows, across * self.columns)[: work.m, : work.n]

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.lut_tensor_core import lookup_theorem

        return {"lookup_is_the_signed_sum": lookup_theorem()}
