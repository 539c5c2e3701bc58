"""The SIMD units of a CPU core: products by table lookup (T-MAC) and by multiply-add.

Wei et al., "T-MAC: CPU Renaissance via Table Lookup for Low-Bit LLM Deployment on Edge", EuroSys 2025, arXiv:2407.00088.
"""

from __future__ import annotations

from math import ceil

from pydantic import Field

from hw.errors import HardwareError
from hw.gemm import gemm
from hw.lowbit.lookup import ACT_GROUP, GROUP
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Gemm, Work, sides

PLANES = (1, 2, 3, 4)
"""Bits of weights that the kernels are made for."""
TABLE_OPERATIONS = 24 + 8 + 8 + 8 + 8
"""Lane operations to build a table of four activations: three additions for each of eight entries, their scaling, their rounding to int8,
the mirrored eight, and the sum of magnitudes (four absolute values, three additions, a maximum)."""


class TmacCore(Unit, kind="tmac_core", executes={"gemm"}):
    """One core that issues `ports` SIMD instructions of `register_bits` per cycle, `table_ports` of them table lookups (tbl, pshufb).

    Products of weights of 1 to 4 bits (`fp16xint4`) run bit by bit: an instruction looks up one entry of a table of four activations for
    each byte of a register, so for register_bits / 8 outputs. To each such instruction come `unpack` instructions that
    make bytes of packed indices and `accumulate` ones that add its results to 16-bit sums; after `act_group` inputs,
    `combine` instructions per plane and register of outputs turn the sums into floats and scale them. Tables of all inputs are
    built once per row of activations, `TABLE_OPERATIONS` each, on 16-bit lanes.

    `multiply` has the multiply-adds of one instruction by format, for products that are not looked up (`fp16xfp16` of operands that
    are stored so: the lanes have no time to convert others); `multiply_ports` issue them, all where not given. Loads are not a limit here:
    there is one for two lookups at most. What the counts leave out - dependences, cache misses, the threads' barriers - makes
    kernels slower, never faster.
    """

    ports: Count
    table_ports: Count
    register_bits: Count = 128
    unpack: Count = 1
    accumulate: Count = 2
    combine: Count = 4
    act_group: Count = ACT_GROUP
    multiply: dict[str, Count] = Field(min_length=1)
    multiply_ports: Count | None = None
    activations: tuple[str, ...] = ("fp16", "fp32", "int8")

    def cycles(self, work: Work) -> int:
        """Cycles of one core for a tile; rows of activations run one after the other.

        >>> TmacCore(ports=4, table_ports=4, multiply={"fp16xfp16": 8}).cycles(Gemm(1, 4096, 4096, "fp16xint2"))
        558848
        """
        work = gemm(work)
        if not (bits := self.planes(work.format)):
            if work.format not in self.multiply:
                raise HardwareError(f"the core has no products in {work.format}, only in {', '.join(sorted(self.formats()))}")
            return work.m * ceil(ceil(work.n / self.multiply[work.format]) * work.k / (self.multiply_ports or self.ports))
        groups, registers = ceil(work.k / GROUP), ceil(work.n / self.lookups)
        lookups = groups * registers * bits
        combined = ceil(work.k / self.act_group) * registers * bits * self.combine
        issued = lookups * (1 + self.unpack + self.accumulate) + combined
        build = ceil(groups * TABLE_OPERATIONS / (self.register_bits // 16))
        return work.m * (max(ceil(issued / self.ports), ceil(lookups / self.table_ports)) + ceil(build / self.ports))

    @property
    def lookups(self) -> int:
        """Entries that one instruction looks up."""
        return self.register_bits // 8

    def planes(self, number_format: str) -> int:
        """Bits of the weights of a format that is looked up; 0 for any other."""
        left, right = sides(number_format)
        return next((b for b in PLANES if right == f"int{b}" and left in self.activations), 0)

    def formats(self) -> frozenset[str]:
        return frozenset(self.multiply) | {f"{left}xint{bits}" for left in self.activations for bits in PLANES}

    def macs_per_cycle(self, number_format: str) -> int:
        """Rounded up; of lookups the rate of the ports without sums and tables, so that it stays a bound."""
        if bits := self.planes(number_format):
            issue = self.ports * self.lookups * GROUP / (bits * (1 + self.unpack + self.accumulate))
            return ceil(min(issue, self.table_ports * self.lookups * GROUP / bits))
        return (self.multiply_ports or self.ports) * self.multiply.get(number_format, 0)

    def granularity(self) -> tuple[int, int, int]:
        return 1, self.lookups, self.act_group

    def operand_elements(self, work: Gemm) -> tuple[int, int, int]:
        """Weights are used once per row of activations, which stay in registers as tables."""
        return work.m * work.k, work.m * work.k * work.n, work.m * work.n
