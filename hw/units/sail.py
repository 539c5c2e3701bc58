"""Slices of a last-level cache whose SRAM arrays multiply by look-up tables on their bit lines, as in SAIL.

SAIL (arXiv:2509.25853), SRAM-accelerated inference with look-up tables: they are built once and reused over a batch, weights have any
width, repeated patterns of activation bits save look-ups, results are converted in the arrays. Array sizes and cycle equations of
the paper were not at hand: cycles are those of `sram_pim_slice`, whose RTL is verified, and the conversion is counted row by row as
below. Weights arrive in the transposed layout, one bit row per cycle.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import ceil

from hw.errors import HardwareError
from hw.gemm import gemm
from hw.memory import Ratio
from hw.quantity import Count
from hw.unit import Unit
from hw.units.dot_array import DotArray
from hw.units.sram_pim_slice import SramPimSlice
from hw.work import Vector, Work

CONVERT = 3
"""SIMD operations per weight that is converted to another format."""
WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bits of weights."""
MANTISSA, RESULT_BITS = 24, 32
"""Rows of a significand that is packed, and of a result."""


class SimdCores(DotArray, kind="simd_cores", executes={"gemm"}):
    """Cores whose SIMD instructions multiply: `lanes` products of an output take `steps` cycles by format. `count` cores share the
    columns of a product, or take a head of attention each."""

    execution = "cached"

    def conversion_cycles(self, weights: int) -> int:
        """Cycles of a core to turn stored weights into another format: unpacked, made signed and scaled, a quarter of `lanes` wide."""
        return ceil(weights * CONVERT * 4 / self.lanes)


class SailSlices(Unit, kind="sail_slices", executes={"gemm"}):
    """`slices` of a cache with `arrays` compute arrays each, of `rows` x `columns`; all work on one product, each on
    other columns or another part of the contraction.

    Tables hold sums of `group` weights. `reuse` is the share of look-ups that repeated patterns save. Every `scale_group` rows of the
    contraction have a scale of their own: their sums are converted to fp32 in the arrays, and scaled and added up by cores.
    """

    execution = "cached"

    slices: Count = 16
    arrays: Count = 32
    rows: Count = 256
    columns: Count = 256
    group: Count = 4
    activation_bits: Count = 8
    accumulator_bits: Count = 24
    scale_group: Count = 128
    reuse: Ratio = Fraction(0)

    def slice_for(self, number_format: str) -> SramPimSlice:
        """The arrangement of an array for weights of a format, with as many accumulators as its rows hold.

        Raises `HardwareError` for a format that it lacks and for arrays with too few rows.
        """
        if number_format not in self.formats():
            raise HardwareError(f"sail_slices multiplies {', '.join(sorted(self.formats()))}, not {number_format}")
        width = int(number_format.partition("xint")[2])
        return _slice(self.rows, self.columns, width, self.activation_bits, self.group, self.accumulator_bits)

    def conversion_cycles(self) -> int:
        """Bit-serial conversion of all sums of a row of accumulators to fp32: negate by sign, a running OR from the top, the exponent by
        counting it, a shift per bit of the exponent's distance, and the packed result.

        >>> SailSlices(accumulator_bits=24).conversion_cycles()
        217
        """
        n = self.accumulator_bits
        return (n + 1) + n + n + (n - 1).bit_length() * n + MANTISSA

    def cycles(self, work: Work) -> int:
        """Cycles of all arrays together for a product. An array works on its columns and one scale group at a time, in turns of as many
        rows of activations as it has accumulators for; sums leave it as fp32.

        >>> from hw.work import Gemm
        >>> SailSlices().cycles(Gemm(1, 4096, 4096, "int8xint4"))  # 512 blocks: 32 x (16 + 77 + 8 x 25) + 24 + 217 + 32
        9649
        """
        work = gemm(work)
        array = self.slice_for(work.format)
        groups = ceil(min(work.k, self.scale_group) / self.group)
        blocks = ceil(work.n / self.columns) * ceil(work.k / self.scale_group)
        total = 0
        for start in range(0, work.m, array.items):
            batch = min(array.items, work.m - start)
            looks = ceil(groups * batch * self.activation_bits * (1 - self.reuse))
            total += groups * (self.group * array.weight_bits + array.build_cycles()) + looks * array.lookup_cycles()
            total += batch * (self.accumulator_bits + self.conversion_cycles() + RESULT_BITS)  # to zero, converted, out
        return ceil(blocks / (self.arrays * self.slices)) * total

    def combining(self, work: Work) -> Vector:
        """What cores do with the sums of scale groups: each is scaled and added up."""
        work = gemm(work)
        return Vector(work.m * work.n * ceil(work.k / self.scale_group), 2)

    def formats(self) -> frozenset[str]:
        return frozenset(f"int8xint{bits}" for bits in WIDTHS)

    def macs_per_cycle(self, number_format: str) -> int:
        """At most a look-up's share of a bit plane per `lookup_cycles`, in all columns."""
        if number_format not in self.formats():
            return 0
        looks = self.activation_bits * (1 - self.reuse) * self.slice_for(number_format).lookup_cycles()
        return ceil(self.slices * self.arrays * self.columns * self.group / looks)

    def granularity(self) -> tuple[int, int, int]:
        return 1, self.columns, self.scale_group


@lru_cache
def _slice(rows: int, columns: int, weight_bits: int, activation_bits: int, group: int, accumulator_bits: int) -> SramPimSlice:
    def arrangement(items: int) -> SramPimSlice:
        return SramPimSlice(
            columns=columns,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            group=group,
            accumulator_bits=accumulator_bits,
            items=items,
        )

    one = arrangement(1).layout
    if (items := (rows - one.sums) // accumulator_bits) < 1:
        raise HardwareError(
            f"rows: tables of {group} weights of {weight_bits} bits and one accumulator need {one.rows} rows, an array has {rows}: "
            f"{one.rows - rows} short; use a smaller group"
        )
    return arrangement(items)
