"""The matrix units of a GPU's streaming multiprocessors, fed from shared memory."""

from __future__ import annotations

from math import ceil
from typing import ClassVar
from hw.errors import HardwareError
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Gemm, Work


class TensorCore(Unit, kind="tensor_core", executes={"gemm"}):
    """Matrix units of one streaming multiprocessor (SM); `count` is the number of SMs.

    `macs` is the dense multiply-accumulate rate of one SM per cycle and format; `instruction` the (m, n, k) of one matrix
    instruction at 16-bit operands, in whole multiples of which tiles are computed (k scales inversely with operand width);
    `shared_bandwidth` bytes per cycle that one SM's shared memory delivers to the warps; `fill_bandwidth` bytes per cycle that
    one SM receives from the cache; `warps` the (rows, columns) grid
    of warps that divide a thread-block tile, each reading its own rows and columns; `instruction_latency` cycles of one
    dependent instruction; `cluster` the thread blocks, neighbours along the rows, that one read of the cache serves (multicast).
    """

    execution: ClassVar[str] = "waves"

    macs: dict[str, Count]
    instruction: tuple[Count, Count, Count] = (16, 8, 16)
    shared_bandwidth: Count = 128
    fill_bandwidth: Count = 64
    warps: tuple[Count, Count] = (2, 2)
    instruction_latency: Count = 32
    cluster: Count = 1

    def cycles(self, work: Work) -> int:
        """Cycles of one SM for one thread-block tile: the larger of matrix rate and shared-memory operand delivery,
        plus one instruction latency to drain.

        >>> TensorCore(macs={"fp16": 1024}).cycles(Gemm(128, 128, 64, "fp16"))
        1056
        """
        if not isinstance(work, Gemm):
            return super().cycles(work)
        rate = self.macs_per_cycle(work.format)
        if not rate:
            raise HardwareError(f"tensor core has no rate for {work.format}, only for {', '.join(self.macs)}")
        im, inn, ik = self.instruction
        width = _bytes(work.format)
        ik = max(1, ik * 2 // width)
        # the instruction's two result dimensions may be swapped, so that a flat operand pads to the smaller one
        m, n = min(
            (ceil(work.m / im) * im, ceil(work.n / inn) * inn),
            (ceil(work.m / inn) * inn, ceil(work.n / im) * im),
            key=lambda mn: mn[0] * mn[1],
        )
        k = ceil(work.k / ik) * ik
        matrix = ceil(m * n * k / rate)
        warp_rows, warp_columns = self.warps
        delivered = ceil((m * warp_columns + n * warp_rows) * k * width / self.shared_bandwidth)
        return max(matrix, delivered) + self.instruction_latency * work.closes

    def granularity(self) -> tuple[int, int, int]:
        return self.instruction

    def operand_elements(self, work: Gemm) -> tuple[int, int, int]:
        """Every row of warps reads the right operand, every column of warps the left one; sums stay in registers."""
        warp_rows, warp_columns = self.warps
        return work.m * work.k * warp_columns, work.k * work.n * warp_rows, 0

    def formats(self) -> frozenset[str]:
        return frozenset(self.macs)

    def macs_per_cycle(self, number_format: str) -> int:
        return self.macs.get(number_format, 0)


def _bytes(number_format: str) -> int:
    """Operand width in shared memory; sub-byte formats are counted as one byte."""
    return {"tf32": 4, "fp32": 4, "fp64": 8, "fp16": 2, "bf16": 2}.get(number_format, 1)
