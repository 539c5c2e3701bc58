"""An array of ShiftAddLLM elements: lookups, shifts and additions in the place of multiply-accumulates.

You et al., "ShiftAddLLM: Accelerating Pretrained LLMs via Post-Training Multiplication-Less Reparameterization", NeurIPS 2024,
arXiv:2406.05981.
"""

from __future__ import annotations

from math import ceil

from hw.errors import HardwareError
from hw.gemm import gemm
from hw.lowbit.lookup import MU
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Gemm, Work, sides

PLANES = (1, 2, 3, 4)
ENTRIES = 1 << MU


class ShiftAdd(Unit, kind="shift_add", executes={"gemm"}):
    """`elements` of which each looks up, shifts and adds one entry of a table of eight activations per cycle.

    All elements share the table of the moment and work on outputs of their own, plane by plane. The adders of the elements build
    tables too, 255 additions each, before the lookups of a row of activations. Formats are weights of 1 to 4 bits whose
    scales are powers of two (`fp16xshiftadd3`); the scales of `fp16xbcq3` would need multipliers.
    """

    elements: Count = 768
    tail: int = 2

    def cycles(self, work: Work) -> int:
        """Tables, lookups, and two cycles from the last lookup to its sum.

        >>> ShiftAdd(elements=768).cycles(Gemm(1, 4096, 4096, "fp16xshiftadd3"))
        9388
        """
        work = gemm(work)
        if not (bits := self.planes(work.format)):
            raise HardwareError(f"the array has no products in {work.format}, only in {', '.join(sorted(self.formats()))}")
        tables = ceil(work.k / MU) * work.m
        built = ceil(tables * (ENTRIES - 1) / self.elements)
        return built + tables * ceil(work.n / self.elements) * bits + (self.tail if work.final else 0)

    @staticmethod
    def planes(number_format: str) -> int:
        """Bits of the weights of a format; 0 for one that the array has not."""
        return next((b for b in PLANES if sides(number_format) == ("fp16", f"shiftadd{b}")), 0)

    def formats(self) -> frozenset[str]:
        return frozenset(f"fp16xshiftadd{bits}" for bits in PLANES)

    def macs_per_cycle(self, number_format: str) -> int:
        """Rounded up and without the tables, so that it stays a bound."""
        bits = self.planes(number_format)
        return ceil(self.elements * MU / bits) if bits else 0

    def granularity(self) -> tuple[int, int, int]:
        return 1, self.elements, MU

    def operand_elements(self, work: Gemm) -> tuple[int, int, int]:
        """Weights are read for every row of activations; a row once."""
        return work.m * work.k, work.m * work.k * work.n, work.m * work.n
