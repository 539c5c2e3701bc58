"""Matrix units near memory that take what they read as streams: on the logic die of a stack, at its bank groups or at its banks."""

from __future__ import annotations

from functools import cached_property
from math import ceil
from typing import ClassVar

from pydantic import Field

from hw.errors import HardwareError
from hw.gemm import gemm
from hw.pim.logic import BundlePath, Place
from hw.quantity import Capacity, Count
from hw.unit import Unit
from hw.work import Work

PSEUDO_CHANNELS = 32
"""Pseudo channels of an HBM3 stack."""


class NearUnit(Unit, kind="near_pim", executes={"gemm"}):
    """GEMM modules of `stacks` HBM3 stacks, `count` in all, each with `macs` multiply-accumulates per cycle and format.

    Modules multiply what the stack delivers to them (weights, keys and values: the right operand of a product) by vectors that wait
    in a `buffer` per stack; a column of the right operand meets all vectors that the buffer holds before the next one comes. A
    stack works on its share of the outputs, or on heads of its own in attention, and has a copy of the vectors that it needs. `place`
    is where they are, which says what the arrays deliver (`path`): the link to main memory states that rate and its efficiency.
    """

    execution: ClassVar[str] = "bundles"

    macs: dict[str, Count] = Field(min_length=1)
    stacks: Count
    place: Place = "logic"
    buffer: Capacity

    def cycles(self, work: Work) -> int:
        """Cycles of one module for a tile.

        >>> from hw.work import Gemm
        >>> NearUnit(macs={"fp16": 512}, stacks=5, buffer="1 MiB").cycles(Gemm(8, 32, 16, "fp16"))
        8
        """
        work = gemm(work)
        if work.format not in self.macs:
            raise HardwareError(f"near-memory modules have no rate for {work.format}, only for {', '.join(self.macs)}")
        return ceil(work.macs / self.macs[work.format])

    @cached_property
    def path(self) -> BundlePath:
        """The banks behind the modules."""
        return BundlePath(channels=PSEUDO_CHANNELS * self.stacks, place=self.place)

    def passes(self, vector_bytes: int) -> int:
        """How often the right operand is read for vectors of so many bytes in all: once for what the buffer of a stack holds."""
        return max(1, ceil(vector_bytes / self.buffer))

    def formats(self) -> frozenset[str]:
        return frozenset(self.macs)

    def macs_per_cycle(self, number_format: str) -> int:
        return self.macs.get(number_format, 0)
