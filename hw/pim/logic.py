"""Paths to units on the logic die of a stack (Logic-PIM of Duplex, Yun et al., MICRO 2024): bank bundles and four times the TSVs.

A bundle is half of the banks of a pseudo channel in one rank, two of every bank group, read together; columns of a bank group
follow each other at n_ccd_l, so that eight banks keep four times the data bus of a pseudo channel busy. Bundles are memory
sections: the host may use one while the units use another. The units on the logic die are a matter of the device that
has them; here is what the arrays deliver.
"""

from __future__ import annotations

from functools import cached_property
from math import ceil

from hw.part import Part as Sheet
from hw.pim.channel import ATTACC, BankSet, PimChannel
from hw.pim.kernel import Kernel
from hw.pim.layout import check_fit, check_shape
from hw.pim.stream import Kind, Part, Run, Stream
from hw.quantity import Count

BANKS = 8
"""Banks of a bundle; a pseudo channel has four, an upper and a lower one in each of two ranks."""
TSV_PJ_PER_BIT = 1.81
"""Cell to the power-TSV area and down, of the Duplex authors' simulator (from O'Connor et al., MICRO 2017)."""


class BundlePath(Sheet):
    """`channels` pseudo channels of HBM3 whose banks are read bundle by bundle."""

    channels: Count = 160
    refresh: bool = True

    @cached_property
    def channel(self) -> PimChannel:
        preset = ATTACC.model_copy(update={"name": "Logic-PIM-PC", "pseudo_channels": 1})
        # flat banks: rank, group, bank; the upper half of a rank are banks 0 and 1 of every group, the lower half banks 2 and 3
        sets = tuple(
            BankSet(name=f"rank {rank} {half}", first=16 * rank + 2 * part, banks=BANKS, step=preset.banks, block=2)
            for rank in range(preset.ranks)
            for part, half in enumerate(("upper", "lower"))
        )
        bits = 8 * preset.burst_bytes
        energy = {"activate": {"activate": 909.0}, "READ_BUNDLE": {"power TSV path": TSV_PJ_PER_BIT * bits * BANKS}}
        return PimChannel(preset=preset, sets=sets, scope="set", energy_pj=energy, source=preset.source)

    @property
    def internal_peak(self) -> int:
        """Bytes per second of all bundles in use, one per pseudo channel."""
        preset = self.channel.preset
        return BANKS * preset.burst_bytes * 10**15 // (preset.n_ccd_l * preset.clock_fs) * self.channels

    def read(self, size_bytes: int, bundle: int = 0) -> Kernel:
        """`size_bytes` in all, contiguous in one bundle of every pseudo channel, read to the logic die."""
        check_shape("bundle read", size_bytes=size_bytes)
        preset = self.channel.preset
        columns = preset.row_bytes // preset.burst_bytes
        accesses = ceil(size_bytes / (self.channels * BANKS * preset.burst_bytes))
        rows = ceil(accesses / columns)
        check_fit(f"bundle of {size_bytes} B over {self.channels} pseudo channels", rows, preset.rows, preset.row_bytes, BANKS)

        def row(index: int) -> tuple[Run, ...]:
            count = min(columns, accesses - index * columns)
            return (Run("READ_BUNDLE", Kind.READ, count, preset.n_ccd_l, bundle, index, fence=True, turn=True),)

        read = accesses * BANKS * preset.burst_bytes * self.channels
        return Kernel(
            f"{size_bytes} B", self.channel, self.channels, Stream((Part(rows, row),)), 0, read, 0, 0, ("READ_BUNDLE",),
            read / size_bytes, self.refresh,
        )  # fmt: skip
