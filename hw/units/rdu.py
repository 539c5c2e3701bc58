"""A reconfigurable dataflow unit: pattern compute units that stages of a pipeline are laid out over, and the memory tier behind HBM.

Prabhakar et al., "SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts", MICRO 2024: a compute unit
(PCU) is either an output-stationary systolic array or a pipelined SIMD unit with a reduction tree and a tail for transcendental
functions; memory units (PMUs) hold the buffers between stages. The geometry of a PCU is not published and is a parameter here.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from hw.gemm import gemm
from hw.memory import Memory
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Vector, Work


class Rdu(Unit, kind="rdu", executes={"gemm", "vector"}):
    """`pcus` compute units of `rows` x `columns` cells, or of `lanes` with `depth` operations in a row on each element.

    A product's outputs lie on the cells in blocks; the contraction of a block may be shared out over several compute units, whose
    partial sums are added on their way. Operands of every format in `dtypes` run at the same rate.
    """

    execution = "sections"

    pcus: Count = 1040
    rows: Count = 6
    columns: Count = 32
    lanes: Count = 32
    depth: Count = 6
    dtypes: tuple[str, ...] = ("bf16",)

    def product_steps(self, m: int, n: int, k: int, batch: int = 1) -> int:
        """Cycles of one compute unit for `batch` products of [m, k] by [k, n], fill excluded.

        >>> Rdu(rows=6, columns=32).product_steps(12, 64, 100)
        400
        """
        return batch * ceil(m / self.rows) * ceil(n / self.columns) * k

    def vector_steps(self, work: Vector) -> int:
        """Cycles of one compute unit for vector work: as many passes as the operations of an element fill the depth.

        >>> Rdu(lanes=32, depth=6).vector_steps(Vector(elements=64, operations=6, specials=1))
        4
        """
        return ceil(work.elements / self.lanes) * max(1, ceil((work.operations + work.specials) / self.depth))

    @property
    def product_fill(self) -> int:
        """Cycles until the last cell of a systolic array has its first operands and its sum has left."""
        return self.rows + self.columns

    @property
    def vector_fill(self) -> int:
        """Cycles through the stages of a SIMD pipeline."""
        return self.depth

    def cycles(self, work: Work) -> int:
        """Cycles of the whole unit, all compute units on this work alone.

        >>> from hw.work import Gemm
        >>> Rdu(pcus=4, rows=6, columns=32).cycles(Gemm(12, 64, 100, "bf16"))
        138
        """
        if isinstance(work, Vector):
            return ceil(self.vector_steps(work) / self.pcus) + self.vector_fill
        work = gemm(work)
        return ceil(self.product_steps(work.m, work.n, work.k) / self.pcus) + self.product_fill

    def formats(self) -> frozenset[str]:
        return frozenset(self.dtypes)

    def macs_per_cycle(self, number_format: str) -> int:
        return self.pcus * self.rows * self.columns if number_format in self.dtypes else 0

    def operations_per_cycle(self) -> int:
        return self.pcus * self.lanes * self.depth

    def least_cycles(self, work: Vector) -> Fraction:
        return Fraction(work.elements * (work.operations + work.specials), self.operations_per_cycle())

    def granularity(self) -> tuple[int, int, int]:
        return self.rows, self.columns, 1


class CapacityTier(Memory, kind="tier"):
    """A large memory behind main memory, from which data comes over a link of its own; it holds what main memory has no room for."""
