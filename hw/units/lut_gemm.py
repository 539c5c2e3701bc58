"""LUT-GEMM: products of binary-coded weights by lookups in the shared memory of a GPU.

Park et al., "LUT-GEMM: Quantized Matrix Multiplication based on LUTs for Efficient Inference in Large-Scale Generative Language Models",
ICLR 2024, arXiv:2206.09557; the kernel of You et al., "ShiftAddLLM", NeurIPS 2024, is the same with shifts for the scales.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

from hw.errors import HardwareError
from hw.lowbit.lookup import MU
from hw.quantity import Count
from hw.units.tensor_core import TensorCore, most
from hw.work import Gemm, sides

PLANES = (1, 2, 3, 4)
FAMILIES = ("int", "bcq", "shiftadd")
BANKS = 32
"""Banks of shared memory, four bytes wide; a warp of 32 threads looks up at a time."""
CONFLICTS = Fraction(2782, 1000)
"""Turns that 32 lookups at random places of a table of 256 fp16 entries take: the expected largest number of different words in a bank
(128 words in 32 banks). A word that several threads want is read once."""


class LutGemm(TensorCore, kind="lut_gemm", executes={"gemm"}):
    """The general-purpose lanes and the shared memory of one SM as this kernel uses them; `count` is the number of SMs.

    A thread block builds the tables of its activations, one per eight of them: 255 additions of `lanes` lanes. For each of its
    weights' bits in eights it then takes an entry, `CONFLICTS` cycles for 32, and adds it on the lanes. Formats are those of fp16
    activations and weights of 1 to 4 bits, uniform (`fp16xint3`), binary-coded (`fp16xbcq3`) or with scales that are powers of two
    (`fp16xshiftadd3`); scales cost as many operations as there are groups, which are left out.
    """

    lanes: Count = 64
    macs: dict[str, Count] = {f"fp16x{family}{bits}": -(-MU * BANKS // bits) for family in FAMILIES for bits in PLANES}  # noqa: RUF012
    instruction: tuple[Count, Count, Count] = (1, 1, MU)
    tile_rows: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    tile_columns: tuple[Count, ...] = (32, 64, 128, 256, 512, 1024, 2048, 4096)

    warp: ClassVar[int] = 32

    def tile_cycles(self, m: Any, n: Any, k: Any, number_format: str, full: bool = False) -> Any:
        """Cycles of one SM for a tile: its tables, then the slower of lookups and additions; without conflicts at the `full` rate.

        `m`, `n` and `k` are integers or integer arrays.
        """
        if not self.macs_per_cycle(number_format):
            raise HardwareError(f"LUT-GEMM has no products in {number_format}, only in {', '.join(self.macs)}")
        bits = next(b for b in PLANES if sides(number_format)[1].endswith(str(b)))
        tables = -(-k // MU) * m
        lookups = tables * n * bits
        turns = Fraction(1) if full else CONFLICTS
        read = -(-lookups * turns.numerator // (BANKS * turns.denominator))
        return most(read, -(-lookups // self.lanes)) + -(-tables * ((1 << MU) - 1) // self.lanes)

    def operand_elements(self, work: Gemm) -> tuple[int, int, int]:
        """Every operand once; sums stay in registers."""
        return work.m * work.k, work.k * work.n, 0
