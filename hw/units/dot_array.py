"""An output-stationary array of dot-product cells that multiply operands of unlike formats, broadcast along rows and columns."""

from __future__ import annotations

from math import ceil

from pydantic import Field

from hw.gemm import gemm
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Gemm, Work


class DotArray(Unit, kind="dot_array", executes={"gemm"}):
    """R x C cells: results of the same output channel share a row, results of the same token a column.

    A cell adds `lanes` products in `steps` cycles, by the format of the operands (`fp16xbitmod4`: fp16 activations, BitMoD weights). A
    broadcast reaches all cells in one cycle, so that a block of results takes ceil(K / lanes) x steps; `tail` cycles
    pass from the last step of an operator until its last result is complete. With one cell, `lanes` of 4 and a tail of 11 these are the
    cycles of `bitmod_pe`, whose RTL is verified, for groups that are whole and at least 36 weights (18 for int8) long.
    """

    rows: Count
    columns: Count
    lanes: Count = 1
    steps: dict[str, Count] = Field(min_length=1)
    tail: int = Field(default=0, ge=0)
    accumulator_bits: Count = 32

    def cycles(self, work: Work) -> int:
        """Cycles of one copy for a tile.

        >>> DotArray(rows=32, columns=32, lanes=4, steps={"fp16xbitmod4": 2}, tail=11).cycles(Gemm(256, 4096, 4096, "fp16xbitmod4"))
        2097163
        """
        work = gemm(work)
        blocks = ceil(work.m / self.columns) * ceil(work.n / self.rows)
        return blocks * ceil(work.k / self.lanes) * self.steps[work.format] + (self.tail if work.final else 0)

    def formats(self) -> frozenset[str]:
        return frozenset(self.steps)

    def macs_per_cycle(self, number_format: str) -> int:
        """Rounded up where a step takes several cycles, so that it stays a bound."""
        return ceil(self.rows * self.columns * self.lanes / self.steps[number_format]) if number_format in self.steps else 0

    def granularity(self) -> tuple[int, int, int]:
        return self.columns, self.rows, self.lanes

    def accumulator_bytes(self) -> int:
        return ceil(self.accumulator_bits / 8)

    def operand_elements(self, work: Gemm) -> tuple[int, int, int]:
        """Activations are read once per block of output channels, weights once per block of tokens."""
        return work.m * work.k * ceil(work.n / self.rows), work.k * work.n * ceil(work.m / self.columns), work.m * work.n
