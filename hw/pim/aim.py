"""SK hynix GDDR6-AiM: a 16-lane unit per bank, a global buffer per channel, 16 accumulators read in one beat.

Commands of the AiM simulator (github.com/arkhadem/aim_simulator): WR_GB fills the buffer, WR_BIAS sets the accumulators, MAC_ABK
runs over up to 64 columns of one row in all banks, RD_MAC returns a sum per bank. Commands keep their order, and AiM and
ordinary requests exclude each other in a channel, with a change of mode between them. Refresh is charged: that simulator
issues none while AiM commands run, the part must.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from math import ceil

from hw.part import Part as Sheet
from hw.pim.channel import AIM, BankSet, PimChannel
from hw.pim.kernel import Kernel
from hw.pim.layout import RowLayout, check_fit, check_shape
from hw.pim.stream import Kind, Part, Run, Stream, once
from hw.quantity import Count

MODE = 32  # nMODCH
RCD_MAC = 56  # nRCDRDMAC
COLUMNS = 64
"""Columns of one MAC_ABK (its largest opsize): a row of 2 KiB."""
ARRAY = ("MAC_ABK",)

_READ = 438 * 1.25  # pJ of a read burst in the device: 438 mW over 1.25 ns
_WRITE = 553 * 1.25
_PINS = 5.5 * 256
ENERGY_PJ: dict[str, dict[str, float]] = {
    "activate": {"activate": 66.3 * 44.5},
    "MAC_ABK": {"cells and compute": 3 * 438 * 1.0},
    "WR_GB": {"global buffer": _WRITE, "interface": _PINS},
    "WR_BIAS": {"registers": _WRITE, "interface": _PINS},
    "RD_MAC": {"registers": _READ, "interface": _PINS},
    "MODE": {},
}
"""CENT power model (Gu et al., ASPLOS 2025): an all-bank MAC draws three times the power of a read for a beat of 1 ns; a register
access is charged as a burst of the device; 5.5 pJ/b at the pins."""


class Aim(Sheet):
    """`channels` channels of 16 banks (two per device of 8 Gb)."""

    channels: Count = 2
    banks: Count = 16
    lanes: Count = 16
    refresh: bool = True

    @cached_property
    def channel(self) -> PimChannel:
        every = BankSet(name="all", first=0, banks=self.banks)
        return PimChannel(preset=AIM, sets=(every,), mode_clocks=MODE, energy_pj=ENERGY_PJ, source=AIM.source)

    @property
    def formats(self) -> frozenset[str]:
        return frozenset({"fp16", "bf16"})

    @property
    def free_rows(self) -> int:
        return AIM.rows

    @property
    def internal_peak(self) -> int:
        """Bytes per second of all units: a column of every bank each nCCD."""
        return int(self.channel.internal_peak(AIM.n_ccd_l) * self.channels)

    def layout(self, outputs: int, inputs: int, batch: int = 1) -> RowLayout:
        """The layout of a weight matrix. Raises `HardwareError` when it does not fit."""
        check_shape("AiM matrix", outputs=outputs, inputs=inputs, batch=batch)
        layout = RowLayout(outputs, inputs, self.channels, self.banks, self.lanes, COLUMNS)
        what = f"AiM matrix {outputs} x {inputs} on {self.channels} channels"
        check_fit(what, layout.rows_needed, self.free_rows, AIM.row_bytes, self.banks)
        return layout

    def attention(self, jobs: int, tokens: int, width: int, value_width: int = 0, queries: int = 1) -> Kernel:
        """Scores and context of one new token for `jobs` heads, spread evenly over the channels; softmax is left to the host,
        which reads the scores and writes the probabilities.

        Raises `HardwareError` when keys and values of a channel's heads do not fit.
        """
        return _attention(self, jobs, tokens, width, value_width or width, queries)

    def product(self, outputs: int, inputs: int, batch: int = 1) -> Kernel:
        """`batch` vectors of `inputs` 16-bit numbers times a matrix [outputs, inputs] in the banks."""
        return _product(self, outputs, inputs, batch)


def row_product(
    layout: RowLayout, batch: int, *, load: str, mac: str, read: str, gap: int, beat: int, rcd: int, bias: str = "", row: int = 0
) -> Part:
    """Per vector and slice the buffer is loaded; per group of one output per bank the accumulators are set, the columns of
    its part of a row read, the sums returned. `row` moves the whole matrix."""

    def group(index: int) -> tuple[Run, ...]:
        place, number = index % layout.groups, index // layout.groups
        vector, number = divmod(number, layout.slices)
        at, column = layout.row(place, number)
        accesses = layout.slice_accesses(number)
        tag = (vector, number, place)
        runs: list[Run] = []
        if place == 0:
            runs.append(Run(load, Kind.MOVE, accesses, beat, fence=True, turn=True, tag=tag))
        if bias:
            runs.append(Run(bias, Kind.MOVE, 1, beat, fence=True, turn=place > 0, tag=tag))
        runs.append(Run(mac, Kind.READ, accesses, gap, 0, row + at, column, rcd, fence=True, tag=tag))
        runs.append(Run(read, Kind.MOVE, 1, beat, fence=True, tag=tag))
        return tuple(runs)

    def vector(index: int) -> tuple[Run, ...]:
        passes = range(index * layout.slices, (index + 1) * layout.slices)
        return tuple(run for number in passes for place in range(layout.groups) for run in group(number * layout.groups + place))

    return Part(batch, vector)


@lru_cache(maxsize=1024)
def _product(design: Aim, outputs: int, inputs: int, batch: int) -> Kernel:
    layout = design.layout(outputs, inputs, batch)
    gap, beat = AIM.n_ccd_l, AIM.n_ccd_s
    part = row_product(layout, batch, load="WR_GB", mac="MAC_ABK", read="RD_MAC", gap=gap, beat=beat, rcd=RCD_MAC, bias="WR_BIAS")
    enter = once(Run("MODE", Kind.HOLD, 1, MODE, fence=True))
    beats = batch * sum(layout.slice_accesses(s) for s in range(layout.slices))
    accesses = beats * layout.groups
    sums = batch * layout.slices * layout.groups
    burst = AIM.burst_bytes
    return Kernel(
        name=f"[{batch}, {inputs}] x [{outputs}, {inputs}]",
        channel=design.channel,
        channels=design.channels,
        stream=Stream((enter, part, enter)),
        macs=batch * outputs * inputs,
        internal_bytes=accesses * design.banks * burst * design.channels,
        host_read=sums * burst * design.channels,
        host_written=(beats + sums) * burst * design.channels,
        array=ARRAY,
        padding=layout.padding,
        refresh=design.refresh,
        notes=(f"sums of {layout.slices} slices of the inputs are added by the host",) if layout.slices > 1 else (),
    )


@lru_cache(maxsize=1024)
def _attention(design: Aim, jobs: int, tokens: int, width: int, value_width: int, queries: int) -> Kernel:
    check_shape("AiM attention", jobs=jobs, tokens=tokens, width=width, value_width=value_width, queries=queries)
    keys = RowLayout(tokens, width, 1, design.banks, design.lanes, COLUMNS)
    values = RowLayout(value_width, tokens, 1, design.banks, design.lanes, COLUMNS)
    rows, held = keys.rows_needed + values.rows_needed, ceil(jobs / design.channels)
    what = f"AiM: keys and values of {jobs} heads x {tokens} tokens on {design.channels} channels ({held} heads in one)"
    check_fit(what, held * rows, design.free_rows, AIM.row_bytes, design.banks)
    options = {"load": "WR_GB", "mac": "MAC_ABK", "read": "RD_MAC", "bias": "WR_BIAS"}

    def head(index: int) -> tuple[Run, ...]:
        first = index // queries * rows
        runs: list[Run] = []
        for layout, row in ((keys, first), (values, first + keys.rows_needed)):
            runs += row_product(layout, 1, **options, gap=AIM.n_ccd_l, beat=AIM.n_ccd_s, rcd=RCD_MAC, row=row).make(0)
        return tuple(runs)

    enter = once(Run("MODE", Kind.HOLD, 1, MODE, fence=True))
    beats = sum(layout.slice_accesses(s) for layout in (keys, values) for s in range(layout.slices))
    accesses = sum(layout.groups * layout.slice_accesses(s) for layout in (keys, values) for s in range(layout.slices))
    sums = sum(layout.groups * layout.slices for layout in (keys, values))
    used, passes, burst = min(jobs, design.channels), held * queries, AIM.burst_bytes
    return Kernel(
        name=f"{jobs} heads x {queries} queries over {tokens} tokens of {width}",
        channel=design.channel,
        channels=used,
        stream=Stream((enter, Part(passes, head), enter)),
        macs=jobs * queries * tokens * (width + value_width),
        internal_bytes=passes * accesses * design.banks * burst * used,
        host_read=passes * sums * burst * used,
        host_written=passes * (beats + sums) * burst * used,
        array=ARRAY,
        padding=(keys.padding + values.padding) / 2,
        refresh=design.refresh,
        notes=("softmax runs on the host between scores and context",),
    )
