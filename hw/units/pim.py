"""Units in the banks of a memory: their time is that of commands on DRAM channels (`hw.pim`), not of tiles or thread blocks."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import Any, ClassVar

from hw.errors import HardwareError
from hw.pim.aim import Aim
from hw.pim.attacc import AttAcc, Place
from hw.pim.hbm_pim import HbmPim
from hw.pim.kernel import Kernel
from hw.pim.neupims import NeuPims
from hw.quantity import Bandwidth, Count
from hw.unit import Unit
from hw.work import Gemm, Work

Design = HbmPim | Aim | AttAcc | NeuPims


class BankUnit(Unit):
    """Units in the banks of `memory`, which compute on what lies there: tensors of the roles that it `holds`.

    A workload that is a single product may use them whatever the role of its right operand: it stands for one that is held.
    `link` is the rate at which vectors and results reach a memory that is not the device's main memory; None where they use
    the memory's own interface, as commands of the kernel.
    """

    execution: ClassVar[str] = "banks"

    memory: str
    holds: tuple[str, ...] = ("weight",)
    link: Bandwidth | None = None
    refresh: bool = True

    @cached_property
    def design(self) -> Any:
        raise HardwareError(f"unit kind {self.kind!r} has no PIM design")

    @property
    def internal_peak(self) -> int:
        """Bytes per second that the units can read from their banks."""
        return int(self.design.internal_peak)

    def formats(self) -> frozenset[str]:
        return frozenset(self.design.formats)

    def macs_per_cycle(self, number_format: str) -> int:
        """Multiply-accumulates per clock of the channel when every bank delivers a column at the cadence, rounded up."""
        if number_format not in self.formats():
            return 0
        clock = 10**15 // self.design.channel.preset.clock_fs
        return ceil(Fraction(self.internal_peak, 2 * int(clock)))

    def cycles(self, work: Work) -> int:
        """Clocks of the channel for a product whose right operand lies in the banks."""
        if not isinstance(work, Gemm) or work.format not in self.formats():
            return super().cycles(work)
        return self.product(work.n, work.k, work.m).clocks

    def product(self, outputs: int, inputs: int, batch: int) -> Kernel:
        """The kernel of `batch` vectors times a matrix [outputs, inputs]. Raises `HardwareError` when it does not fit."""
        kernel: Kernel = self.design.product(outputs, inputs, batch)
        return kernel

    def attention(self, jobs: int, tokens: int, width: int, value_width: int, queries: int) -> tuple[Kernel, bool]:
        """The kernel of attention for `jobs` heads with `queries` vectors each, and whether softmax is part of it.

        Raises `HardwareError` when the design has none or when keys and values do not fit.
        """
        raise HardwareError(f"unit kind {self.kind!r} has no attention kernel: its vectors change only between kernels")


class HbmPimUnit(BankUnit, kind="hbm_pim", executes={"gemm"}):
    """Samsung HBM-PIM: `channels` pseudo channels with eight units each."""

    channels: Count = 64
    read_back: bool = True

    @cached_property
    def design(self) -> HbmPim:
        return HbmPim(channels=self.channels, read_back=self.read_back, refresh=self.refresh)


class AimUnit(BankUnit, kind="aim", executes={"gemm"}):
    """SK hynix GDDR6-AiM: `channels` channels with a unit per bank."""

    channels: Count = 32

    @cached_property
    def design(self) -> Aim:
        return Aim(channels=self.channels, refresh=self.refresh)

    def attention(self, jobs: int, tokens: int, width: int, value_width: int, queries: int) -> tuple[Kernel, bool]:
        return self.design.attention(jobs, tokens, width, value_width, queries), False


class AttAccUnit(BankUnit, kind="attacc", executes={"gemm"}):
    """AttAcc: `stacks` HBM3 stacks with units at the banks, the bank groups or on the buffer die, and a softmax unit."""

    stacks: Count = 5
    place: Place = "bank"
    power_limited: bool = True
    pipelined: bool = True

    @cached_property
    def design(self) -> AttAcc:
        return AttAcc(
            stacks=self.stacks, place=self.place, power_limited=self.power_limited, pipelined=self.pipelined, refresh=self.refresh
        )

    def attention(self, jobs: int, tokens: int, width: int, value_width: int, queries: int) -> tuple[Kernel, bool]:
        return self.design.attention(jobs, tokens, width, value_width, queries), True


class NeuPimsUnit(BankUnit, kind="neupims", executes={"gemm"}):
    """NeuPIMs: `channels` channels with a unit per bank behind a second row buffer."""

    channels: Count = 32
    dual: bool = True
    composite: bool = True

    @cached_property
    def design(self) -> NeuPims:
        return NeuPims(channels=self.channels, dual=self.dual, composite=self.composite, refresh=self.refresh)

    def attention(self, jobs: int, tokens: int, width: int, value_width: int, queries: int) -> tuple[Kernel, bool]:
        return self.design.attention(jobs, tokens, width, value_width, queries), False
