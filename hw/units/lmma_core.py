"""A GPU's matrix units with look-up arrays beside their multipliers: LMMA instructions for weights of few bits.

Mo et al., "LUT Tensor Core: A Software-Hardware Co-Design for LUT-Based Low-Bit LLM Inference", ISCA 2025, arXiv:2408.06003.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hw.errors import HardwareError
from hw.quantity import Count
from hw.units.tensor_core import TensorCore, least, most
from hw.work import Gemm

SCALE_GROUP = 64
"""Activations whose quantised table entries share a scale. The paper does not state it; an assumption."""

SCALE_BITS = 16

TABLE_FORMAT = re.compile(r"(?:full)?table(?P<bits>8|16)-k(?P<depth>[2-8])xint(?P<planes>[1-8])")


def table_adds(depth: int) -> int:
    """Additions for the 2^(depth - 1) signed sums of `depth` activations whose first digit is -1, from the tables of two parts.

    A part's mirrored half costs nothing: its sums enter negated.

    >>> [table_adds(depth) for depth in (1, 2, 3, 4)]
    [0, 2, 6, 12]
    """
    if depth == 1:
        return 0
    return min(table_adds(part) + table_adds(depth - part) for part in range(1, depth)) + (1 << (depth - 1))


class LmmaCore(TensorCore, kind="lmma_core", executes={"gemm"}):
    """The tensor core of one SM, and `arrays` look-up arrays beside it.

    An array has `rows` tables, each broadcast to `columns` multiplexers: per cycle it adds `rows` x `columns` sums of `depth`
    products by one bit of the weights, so that weights of b bits take b cycles (the arrays of `lut_tensor_core`, whose RTL is
    verified at a depth of 4). Products read tables instead of activations: formats `table8-k4xint2` are 8-bit entries for groups of
    four activations, by 2-bit weights. With `symmetric` tables the half with the first digit +1 is not stored: it is the other
    half, negated. `tables` says who builds them: the kernel that writes the activations (`fused`), one of their own (`separate`),
    whichever is faster (`by_cost`, which also takes the multipliers with converted weights where those are), or nobody (`none`).
    """

    arrays: Count = 16
    rows: Count = 2
    columns: Count = 64
    depth: Annotated[int, Field(ge=2, le=8)] = 4
    widest: Annotated[int, Field(ge=1, le=8)] = 4
    table_bits: int = 8
    symmetric: bool = True
    tables: Literal["by_cost", "fused", "separate", "none"] = "by_cost"

    @model_validator(mode="after")
    def _entries(self) -> LmmaCore:
        if self.table_bits not in (8, 16):
            raise HardwareError(f"table_bits: expected 8 (quantised tables) or 16, found {self.table_bits}")
        return self

    # Tables -----------------------------------------------------------------------------------------------------------
    @property
    def table_format(self) -> str:
        """The name of the format in which products read their left operand."""
        return f"{'table' if self.symmetric else 'fulltable'}{self.table_bits}-k{self.depth}"

    @property
    def entries(self) -> int:
        """Entries of a table.

        >>> LmmaCore(macs={"fp16": 1024}).entries, LmmaCore(macs={"fp16": 1024}, symmetric=False).entries
        (8, 16)
        """
        return 1 << (self.depth - self.symmetric)

    @property
    def table_bits_per_activation(self) -> Fraction:
        """Storage of tables per activation, with the scale of quantised entries.

        >>> LmmaCore(macs={"fp16": 1024}, table_bits=16).table_bits_per_activation
        Fraction(32, 1)
        """
        scale = Fraction(SCALE_BITS, SCALE_GROUP) if self.table_bits == 8 else Fraction(0)
        return Fraction(self.entries * self.table_bits, self.depth) + scale

    @property
    def build_operations(self) -> Fraction:
        """Vector operations per activation to build a table: its additions (a mirrored half is negated entry by entry), and for
        quantised entries the largest magnitude of its activations' sum, a scale and a rounding of each entry.

        >>> LmmaCore(macs={"fp16": 1024}).build_operations, LmmaCore(macs={"fp16": 1024}, table_bits=16).build_operations
        (Fraction(8, 1), Fraction(3, 1))
        """
        adds = table_adds(self.depth) + (0 if self.symmetric else self.entries // 2)
        quantise = self.depth + 2 * self.entries if self.table_bits == 8 else 0
        return Fraction(adds + quantise, self.depth)

    def planes(self, number_format: str) -> int:
        """Bits of the weights, one plane of them per cycle; 0 for formats that are multiplied."""
        match = TABLE_FORMAT.fullmatch(number_format)
        return int(match["planes"]) if match and number_format in self._rates else 0

    def instruction_name(self, activations: str, number_format: str) -> str:
        """The LMMA instruction: its shape, and the types of activations, weights, sums and results.

        >>> LmmaCore(macs={"fp16": 1024}).instruction_name("int8", "table8-k4xint2")
        'lmma.m2n64k4.int8.int2.int32.int32'
        """
        sums = "int32" if activations.startswith("int") else "fp32"
        return f"lmma.m{self.rows}n{self.columns}k{self.depth}.{activations}.int{self.planes(number_format)}.{sums}.{sums}"

    # Costs ------------------------------------------------------------------------------------------------------------
    @cached_property
    def _rates(self) -> dict[str, int]:
        sums = self.arrays * self.rows * self.columns * self.depth
        return {f"{self.table_format}xint{bits}": -(-sums // bits) for bits in range(1, self.widest + 1)}

    def tile_cycles(self, m: Any, n: Any, k: Any, number_format: str, full: bool = False) -> Any:
        """Cycles of one SM for the instructions of a tile: bit planes at the rate of all arrays, or the delivery of tables and
        weights from shared memory to the warps, in the grid of warps that needs least.

        >>> LmmaCore(macs={"fp16": 1024}).tile_cycles(128, 128, 64, "table8-k4xint2")
        256
        """
        planes = self.planes(number_format)
        if not planes:
            return super().tile_cycles(m, n, k, number_format, full)
        share = Fraction(1) if full else self.sustained.get(number_format, self.efficiency)
        steps = -(-m // self.rows) * -(-n // self.columns) * -(-k // self.depth) * planes
        matrix = -(-steps * share.denominator // (self.arrays * share.numerator))
        return most(matrix, -(-self._delivered_bits(m, n, planes) * k // (8 * self.depth * self.shared_bandwidth)))

    def _delivered_bits(self, m: Any, n: Any, planes: int) -> Any:
        """Bits that cross per group of `depth` along k, in the best grid of as many warps as `warps` has."""
        warps = self.warps[0] * self.warps[1]
        best: Any = None
        for rows in (i for i in range(1, warps + 1) if warps % i == 0):
            bits = m * (warps // rows) * self.entries * self.table_bits + n * rows * planes * self.depth
            best = bits if best is None else least(best, bits)
        return best

    def operand_elements(self, work: Gemm) -> tuple[int, int, int]:
        planes = self.planes(work.format)
        if not planes:
            return super().operand_elements(work)
        warps = self.warps[0] * self.warps[1]
        grids = [(rows, warps // rows) for rows in range(1, warps + 1) if warps % rows == 0]
        table = self.entries * self.table_bits

        def bits(grid: tuple[int, int]) -> int:
            return work.m * grid[1] * table + work.n * grid[0] * planes * self.depth

        rows, columns = min(grids, key=bits)
        return work.m * work.k * columns, work.k * work.n * rows, 0

    def formats(self) -> frozenset[str]:
        return super().formats() | frozenset(self._rates)

    def macs_per_cycle(self, number_format: str) -> int:
        return self._rates.get(number_format) or super().macs_per_cycle(number_format)
