"""A core of FlightLLM: a matrix engine of sparse DSP chains, its buffers, and a unit for everything that is not a product.

Zeng et al., "FlightLLM: Efficient Large Language Model Inference with a Complete Mapping Flow on FPGAs", FPGA 2024,
arXiv:2401.03868; sizes and rates of the configuration that the authors released with their profiler
(github.com/FlightLLM/flightllm_test_demo, `profile/config.yaml`).
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from hw.errors import HardwareError
from hw.memory import Memory
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Gemm, Vector, Work


def _positive(value: object) -> Fraction:
    try:
        number = Fraction(str(value))
    except (ValueError, ZeroDivisionError) as error:
        raise HardwareError(f"expected a number such as 3.2 or 16/5, not {value!r}") from error
    if number <= 0:
        raise HardwareError(f"expected a number above 0, not {value!r}")
    return number


Factor = Annotated[
    Fraction, BeforeValidator(_positive), PlainSerializer(str, return_type=str), WithJsonSchema({"type": ["string", "number"]})
]


class FlightCore(Unit, kind="flightllm_core", executes={"gemm", "vector"}):
    """One core: products as MM (many rows) or MV (one row), row operations on `lanes` elements per cycle.

    A chain has `chain` groups of `group` multipliers and can be cut between groups, so the smallest N of N:`tile` sparsity that it
    gains from is `group`. MM multiplies `start_rows` x `mm_start` outputs per instruction on `mm_rows` x `mm_columns` chains; MV
    multiplies `mv_start` outputs on `mv_columns` chains, and shorter products are padded to that.

    `speedup` is what all cores together are faster than one: instruction times are those of one core, divided by it. `channels`
    HBM channels feed a core's A and global buffers; a transfer runs at `same_channel` of a channel's peak, or `cross_channel` where the
    data is in another channel than the buffer's. Buffer depths are in entries, of the widths (bytes) beside them.
    """

    mm_rows: Count = 128
    mm_columns: Count = 2
    mv_columns: Count = 64
    tile: Count = 16
    start_rows: Count = 128
    mm_start: Count = 16
    mv_start: Count = 512
    lanes: Count = 16
    chain: Count = 8
    group: Count = 2
    speedup: Factor = Fraction(1)
    channels: Annotated[int, Field(ge=1, le=8)] = 8
    same_channel: Factor = Fraction(7, 10)
    cross_channel: Factor = Fraction(7, 20)
    a_depth: Count = 4096
    b_depth: Count = 4096
    global_depth: Count = 512
    meta_depth: Count = 4096
    mask_depth: Count = 4096
    bias_depth: Count = 4096
    a_width: Count = 256
    a_mv_width: Count = 64
    b_width: Count = 32
    global_width: Count = 32
    meta_width: Count = 16
    bias_width: Count = 64

    @model_validator(mode="after")
    def _consistent(self) -> FlightCore:
        if self.multipliers % self.tile and self.tile % self.multipliers:
            raise HardwareError(
                f"chain: {self.chain} groups of {self.group} multipliers make {self.multipliers}, expected a divisor or a multiple of the "
                f"{self.tile} rows of a block"
            )
        if self.mv_start % (self.tile * self.channels):
            raise HardwareError(
                f"mv_start: expected a multiple of {self.tile * self.channels} (a block per channel), found {self.mv_start}"
            )
        if max(self.same_channel, self.cross_channel) > 1:
            raise HardwareError(
                f"same_channel, cross_channel: efficiencies are at most 1, found {self.same_channel} and {self.cross_channel}"
            )
        for name in ("a_depth", "b_depth", "global_depth", "meta_depth", "mask_depth"):
            if getattr(self, name) > 4096:
                raise HardwareError(f"{name}: instructions address 4096 entries, found {getattr(self, name)}")
        return self

    def cycles(self, work: Work) -> int:
        """Cycles of one core: instruction times without the queues around them.

        >>> FlightCore().cycles(Gemm(1, 11008, 4096, "int8"))  # 22 groups of 512 outputs
        45056
        """
        match work:
            case Gemm(m=1):
                macs = ceil(work.n / self.mv_start) * self.mv_start * ceil(work.k / self.tile) * self.tile
                return ceil(Fraction(macs, self.mv_macs))
            case Gemm():
                rows = ceil(work.m / self.start_rows) * self.start_rows
                macs = rows * ceil(work.n / self.mm_start) * self.mm_start * ceil(work.k / self.tile) * self.tile
                return ceil(Fraction(macs, self.mm_macs))
            case Vector():
                return ceil(work.elements / self.lanes) * (1 if not work.specials else 2)

    @property
    def multipliers(self) -> int:
        """Multipliers of one chain."""
        return self.chain * self.group

    @property
    def mm_macs(self) -> int:
        """Multiply-accumulates per cycle of MM."""
        return self.mm_rows * self.mm_columns * self.multipliers

    @property
    def mv_macs(self) -> int:
        """Multiply-accumulates per cycle of MV."""
        return self.mv_columns * self.multipliers

    def formats(self) -> frozenset[str]:
        return frozenset({"int8"})

    def macs_per_cycle(self, number_format: str) -> int:
        return self.mm_macs if number_format == "int8" else 0

    def operations_per_cycle(self) -> int:
        return self.lanes


class InstructionMemory(Memory, kind="instruction_memory"):
    """DDR beside the HBM: it holds instructions and is read in small pieces."""
