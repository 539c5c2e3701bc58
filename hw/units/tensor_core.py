"""The matrix units of a GPU's streaming multiprocessors, fed from shared memory."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from hw.errors import HardwareError
from hw.memory import Ratio, Share
from hw.quantity import Count, Duration, Energy
from hw.unit import Unit
from hw.work import Gemm, Work, sides

BLOCK_AREA = 128 * 128
"""Results of the thread block whose warps, one to a scheduler, are meant by a lone block."""

IDLE = 0.2
"""Share of a board's power that is not for products: memory, fans, leakage. An assumption."""

NARROWER = 0.66
"""Energy of a multiply-accumulate of operands of half the width: products take less than half, sums as much as before. Fitted on
fp8 against bf16 products of an H100 SXM (NVIDIA aiconfigurator, TensorRT-LLM 1.3.0rc10), the half of the shapes called fitted."""

SLICE = 64
"""Elements of k in one step of a thread block's pipeline."""


class TensorCore(Unit, kind="tensor_core", executes={"gemm"}):
    """Matrix units of one streaming multiprocessor (SM); `count` is the number of SMs.

    `macs` is the dense multiply-accumulate rate of one SM per cycle and format (`fp16xint4`: of fp16 by int4 as it is stored);
    `instruction` the (m, n, k) of one matrix instruction at 16-bit operands, in whole multiples of which tiles are computed (k
    scales inversely with the left operand's width);
    `shared_bandwidth` bytes per cycle that one SM's shared memory delivers to the warps; `warps` the (rows, columns) grid
    of warps that divide a thread-block tile, each reading its own rows and columns; `instruction_latency` cycles of one
    dependent instruction; `cluster` the thread blocks, neighbours along the rows, that one read of the cache serves (multicast).

    What kernels reach beyond that is described by constants of the generation, all neutral by default: `efficiency`, the share
    of the rate that long products sustain (issue slots); `lone_rate`, the multiply-accumulates of
    16-bit operands per cycle that a single thread block of 128 x 128 results reaches on an SM whose warps load operands into registers
    (not where instructions are `asynchronous` and read shared memory themselves: wgmma, tcgen05); `port`, bytes per cycle that an SM
    takes from the cache; `mac_power`, the energy of one multiply-accumulate of 16-bit operands with everything around it at
    the full clock, from which the power limit of the board follows; `sustained`, the efficiency
    of single formats where it is another; `step_latency`, cycles that a lone thread block needs per 64 elements of
    k however small its tile; `block_overhead`, cycles between thread blocks that follow each other; `drain`, cycles per result
    to leave the accumulators; `split_latency`, the extra time of a product whose k is split; `attention_overhead`,
    cycles between thread blocks of attention, beside what they wait for main memory; `attention_overlap`, the share of the shorter
    of an attention block's products and softmax that runs beside the longer one (asynchronous matrix instructions, or those of
    another thread block).
    `bulk_cache` is how many bits an element of a cache has at most that the vendor's kernels for a group's few queries load by bulk
    copies, where blocks come in clusters at all.
    `tile_rows` and `tile_columns`
    are the edges of the thread-block tiles that the vendor's library is built for.
    """

    execution: ClassVar[str] = "waves"

    macs: dict[str, Count]
    instruction: tuple[Count, Count, Count] = (16, 8, 16)
    shared_bandwidth: Count = 128
    warps: tuple[Count, Count] = (2, 2)
    instruction_latency: Count = 32
    cluster: Count = 1
    tile_rows: tuple[Count, ...] = (16, 32, 64, 128, 256)
    tile_columns: tuple[Count, ...] = (32, 64, 128, 256)
    efficiency: Share = Fraction(1)
    lone_rate: int = Field(default=0, ge=0)
    port: int = Field(default=0, ge=0)
    mac_power: Energy | None = None
    sustained: dict[str, Share] = Field(default_factory=dict)
    asynchronous: bool = False
    bulk_cache: Count = 16
    step_latency: int = Field(default=0, ge=0)
    block_overhead: int = Field(default=0, ge=0)
    drain: Ratio = Fraction(0)
    split_latency: Duration = 0
    attention_overhead: int = Field(default=0, ge=0)
    attention_overlap: Ratio = Fraction(0)

    def cycles(self, work: Work) -> int:
        """Cycles of one SM for one thread-block tile: the larger of matrix rate and shared-memory operand delivery,
        plus one instruction latency to drain.

        >>> TensorCore(macs={"fp16": 1024}).cycles(Gemm(128, 128, 64, "fp16"))
        1056
        """
        if not isinstance(work, Gemm):
            return super().cycles(work)
        return int(self.tile_cycles(work.m, work.n, work.k, work.format)) + self.instruction_latency * work.closes

    def tile_cycles(self, m: Any, n: Any, k: Any, number_format: str, full: bool = False) -> Any:
        """Cycles of one SM for the instructions of a tile, without their drain; at the `full` rate or the sustained one.

        `m`, `n` and `k` are integers or integer arrays."""
        rate = self.macs_per_cycle(number_format)
        if not rate:
            raise HardwareError(f"tensor core has no rate for {number_format}, only for {', '.join(self.macs)}")
        left, right = operand_bits(number_format)
        im, inn, ik = self.instruction
        share = Fraction(1) if full else self.sustained.get(number_format, self.efficiency)
        depth = _whole(k, max(1, ik * 16 // left))
        warp_rows, warp_columns = self.warps
        best: Any = None
        shapes = [(_whole(m, im), _whole(n, inn))]
        if left == right:  # the instruction's two result dimensions may be swapped, so that a flat operand pads to the smaller one
            shapes.append((_whole(m, inn), _whole(n, im)))
        for rows, columns in shapes:
            matrix = -(-rows * columns * depth * share.denominator // (rate * share.numerator))
            delivered = -(-(rows * warp_columns * left + columns * warp_rows * right) * depth // (8 * self.shared_bandwidth))
            cycles = most(matrix, delivered)
            best = cycles if best is None else least(best, cycles)
        return best

    def within(self, power_w: Fraction | None, clock_hz: int) -> TensorCore:
        """This unit at the clock that the board's power allows, if that is less than its own.

        All multiply-accumulates of 16-bit operands at the full clock would take `mac_power` each, narrower ones at their higher
        rate `NARROWER` of it for each halving; what is left of the power beside `IDLE` pays for the share s of them that is done at
        the share s of the clock, at s squared of their power (voltage follows the clock).
        """
        rate = max((self.macs_per_cycle(name) for name in ("fp16", "bf16")), default=0)
        if self.mac_power is None or power_w is None or not rate:
            return self
        shares = {}
        for name, macs in self.macs.items():
            halvings = max(0, (macs // rate).bit_length() - 1)
            wanted = float(self.mac_power) * 1e-12 * NARROWER**halvings * macs * self.count * clock_hz
            share = (float(power_w) * (1 - IDLE) / wanted) ** 0.5
            if share < 1:
                shares[name] = self.efficiency * Fraction(max(1, round(share * 4096)), 4096)
        return self.model_copy(update={"sustained": shares})

    def slowed(self, share: Fraction) -> TensorCore:
        """This unit with a share of its sustained rates: kernels that do not use it well."""
        update = {"efficiency": self.efficiency * share, "sustained": {name: value * share for name, value in self.sustained.items()}}
        return self.model_copy(update=update)

    @cached_property
    def lone(self) -> Fraction:
        """Share of the matrix rate that a lone thread block reaches: that of 16-bit operands, for every format."""
        if self.asynchronous:
            return Fraction(1)
        rate = max((self.macs_per_cycle(name) for name in ("fp16", "bf16")), default=0)
        return Fraction(min(self.lone_rate, rate), rate) if self.lone_rate and rate else Fraction(1)

    def round_cycles(self, together: Any, tile: Any, area: Any, depth: Any) -> Any:
        """Cycles of an SM for `together` thread blocks side by side, of `tile` cycles and `area` results each, over `depth`
        elements of k: their work, or that of one which its own warps cannot keep busy, or its steps through k."""
        alone = -(-tile * (BLOCK_AREA * self.lone.denominator) // (self.lone.numerator * most(area, BLOCK_AREA)))
        steps = -(-depth * self.step_latency // SLICE)
        return most(most(together * tile, alone), steps) + self.block_overhead

    def block(self) -> tuple[int, int, int]:
        return self.instruction

    def operand_elements(self, work: Gemm) -> tuple[int, int, int]:
        """Every row of warps reads the right operand, every column of warps the left one; sums stay in registers."""
        warp_rows, warp_columns = self.warps
        return work.m * work.k * warp_columns, work.k * work.n * warp_rows, 0

    def formats(self) -> frozenset[str]:
        return frozenset(self.macs)

    def macs_per_cycle(self, number_format: str) -> int:
        return self.macs.get(number_format, 0)


def least(a: Any, b: Any) -> Any:
    """The smaller of two numbers, or of each pair of two arrays."""
    return np.minimum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else min(a, b)


def most(a: Any, b: Any) -> Any:
    """The larger of two numbers, or of each pair of two arrays."""
    return np.maximum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else max(a, b)


def _whole(size: Any, step: int) -> Any:
    return -(-size // step) * step


def operand_bits(number_format: str) -> tuple[int, int]:
    """Widths of the left and the right operand in shared memory. Formats of one width are counted as whole bytes, but for 4-bit floats
    with block scales, which instructions of their own read packed (PTX ISA, tcgen05.mma.kind::mxf4nvf4); of unlike operands
    (`fp16xint4`) the right one lies there as it is stored.

    >>> operand_bits("fp16"), operand_bits("int4"), operand_bits("nvfp4"), operand_bits("fp16xint4"), operand_bits("int8xternary")
    ((16, 16), (8, 8), (4, 4), (16, 4), (8, 2))
    """
    left, right = sides(number_format)
    if left == right and left in ("nvfp4", "mxfp4"):
        return 4, 4
    wide = 8 * {"tf32": 4, "fp32": 4, "fp64": 8, "fp16": 2, "bf16": 2}.get(left, 1)
    if left == right:
        return wide, wide
    digits = re.search(r"\d+", right)
    return wide, int(digits[0]) if digits else 2
