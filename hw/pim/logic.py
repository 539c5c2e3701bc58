"""What the arrays of a stack deliver to units near them: bank bundles of Logic-PIM (Duplex, Yun et al., MICRO 2024) and its comparators.

A bundle is half of the banks of a pseudo channel in one rank, two of every bank group, read together over four times the TSVs;
columns of a bank group follow each other at n_ccd_l, so that eight banks keep four times the data bus of a pseudo channel busy.
Bundles are memory sections: the host may use one while the units use another, and while a row of one is read the next row of
another opens. Units at the bank groups read one bank of every group in both ranks (the same rate, in the DRAM dies); units at the
banks read all of them at once (16 times the bus), so that no bank is left to open a row meanwhile.
"""

from __future__ import annotations

from functools import cached_property
from math import ceil
from typing import Literal

from hw.errors import HardwareError
from hw.part import Part as Sheet
from hw.pim.channel import ATTACC, BankSet, PimChannel
from hw.pim.kernel import Kernel
from hw.pim.layout import check_fit, check_shape
from hw.pim.stream import Kind, Part, Run, Stream
from hw.quantity import Count

Place = Literal["logic", "bank_group", "bank"]

BANKS = 8
"""Banks of a bundle; a pseudo channel has four, an upper and a lower one in each of two ranks."""
LONG = 64 * 2**20
"""Bytes per pseudo channel of a stream that is long enough for its rate: 512 rows of all banks."""
PJ_PER_BIT = {"logic": 1.81, "bank_group": 0.686e3 / 256, "bank": 0.187e3 / 256}
"""From the cells to the units: over the power-TSV area and down, to the bank group, and at the bank (0.464, 0.686 and 0.187 nJ per 32 B)
of the Duplex authors' simulator (from O'Connor et al., MICRO 2017)."""


class BundlePath(Sheet):
    """`channels` pseudo channels of HBM3 whose banks are read to units at `place`: the logic die, the bank groups or the banks."""

    channels: Count = 160
    place: Place = "logic"
    refresh: bool = True

    @cached_property
    def channel(self) -> PimChannel:
        preset = ATTACC.model_copy(update={"name": f"{self.place}-PIM-PC", "pseudo_channels": 1})
        each = preset.banks_per_pseudo_channel // preset.ranks
        # flat banks: rank, group, bank; the upper half of a rank are banks 0 and 1 of every group, the lower half banks 2 and 3
        halves = tuple(
            BankSet(name=f"rank {rank} {half}", first=each * rank + 2 * part, banks=BANKS, step=preset.banks, block=2)
            for rank in range(preset.ranks)
            for part, half in enumerate(("upper", "lower"))
        )
        sets = {
            "logic": halves,
            "bank_group": tuple(
                BankSet(name=f"bank {b} of every group", first=b, banks=BANKS, step=preset.banks) for b in range(preset.banks)
            ),
            "bank": (BankSet(name="all", first=0, banks=preset.banks_per_pseudo_channel),),
        }[self.place]
        bits = 8 * preset.burst_bytes * sets[0].banks
        energy = {"activate": {"activate": 909.0}, "READ_BUNDLE": {"path to the units": PJ_PER_BIT[self.place] * bits}}
        scope = "set" if self.place == "logic" else "all"
        return PimChannel(preset=preset, sets=sets, scope=scope, energy_pj=energy, source=preset.source)

    @property
    def banks(self) -> int:
        """Banks that one command reads."""
        return self.channel.sets[0].banks

    @property
    def bundles(self) -> int:
        """Sets of banks of a pseudo channel, of which one is read at a time."""
        return len(self.channel.sets)

    @property
    def internal_peak(self) -> int:
        """Bytes per second of all bundles in use, one per pseudo channel."""
        preset = self.channel.preset
        return self.banks * preset.burst_bytes * 10**15 // (preset.n_ccd_l * preset.clock_fs) * self.channels

    def read(self, size_bytes: int, bundle: int = 0, across: int = 1) -> Kernel:
        """`size_bytes` in all, over every pseudo channel: in one bundle, or row by row in turns `across` several from `bundle` on.

        Raises `HardwareError` for bundles that there are not, and for more than they hold.
        """
        check_shape("bundle read", size_bytes=size_bytes, across=across)
        preset = self.channel.preset
        if bundle < 0 or bundle + across > self.bundles:
            raise HardwareError(f"bundles {bundle} to {bundle + across - 1}: a pseudo channel has {self.bundles}, numbered from 0")
        columns = preset.row_bytes // preset.burst_bytes
        accesses = ceil(size_bytes / (self.channels * self.banks * preset.burst_bytes))
        rows = ceil(accesses / columns)
        what = f"{size_bytes} B over {self.channels} pseudo channels in {across} bundle{'s' if across > 1 else ''}"
        check_fit(what, ceil(rows / across), preset.rows, preset.row_bytes, self.banks)

        def row(index: int) -> tuple[Run, ...]:
            count = min(columns, accesses - index * columns)
            at, alone = bundle + index % across, across == 1
            return (Run("READ_BUNDLE", Kind.READ, count, preset.n_ccd_l, at, index // across, fence=alone, turn=alone),)

        read = accesses * self.banks * preset.burst_bytes * self.channels
        return Kernel(
            f"{size_bytes} B", self.channel, self.channels, Stream((Part(rows, row),)), 0, read, 0, 0, ("READ_BUNDLE",),
            read / size_bytes, self.refresh,
        )  # fmt: skip

    def efficiency(self, across: int = 1) -> float:
        """Share of `internal_peak` that long streams reach, with rows and refresh."""
        size = self.channels * LONG
        return float(self.read(size, 0, across).bandwidth) / self.internal_peak
