"""A channel with processing in memory: its DRAM timing, the sets of banks that commands work on, and energies by location."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from typing import Any

from pydantic import Field, model_validator

from hw.dram import PRESETS, DramPreset
from hw.errors import HardwareError, nearest
from hw.part import Part


class BankSet(Part):
    """Banks that one command opens or reads together: `banks` of the channel, from `first` on in steps of `step`, in groups of
    `block` neighbours.

    Opening takes `activates` commands, each for an equal share of the banks, `spacing` clocks apart (four-bank activates
    under tFAW); one command without a window is what all-bank modes have.
    """

    name: str
    first: int = Field(ge=0)
    banks: int = Field(ge=1)
    step: int = Field(default=1, ge=1)
    block: int = Field(default=1, ge=1)
    activates: int = Field(default=1, ge=1)
    spacing: int = Field(default=0, ge=0)

    @property
    def members(self) -> tuple[int, ...]:
        """Flat numbers of the banks."""
        return tuple(self.first + i // self.block * self.step + i % self.block for i in range(self.banks))


class PimChannel(Part):
    """One channel: `preset` with its timing, `sets` of banks, and what may use the channel during a kernel.

    `row_buffers` 2 keeps ordinary rows open beside those of the kernel (dual row buffer); `scope` is `all` where ordinary
    accesses stand still while a kernel runs, `set` where they may use the banks of other sets, `none` where they may use
    all banks. `mode_clocks` is what handing the channel over costs each way.
    `energy_pj` gives picojoules by command and location; a command or location that is missing is not modelled.
    """

    preset: DramPreset
    sets: tuple[BankSet, ...]
    row_buffers: int = Field(default=1, ge=1, le=2)
    scope: str = "all"
    mode_clocks: int = Field(default=0, ge=0)
    energy_pj: dict[str, dict[str, float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> PimChannel:
        if self.scope not in ("all", "set", "none"):
            raise HardwareError(f"scope: expected all, set or none, not {self.scope!r}{nearest(self.scope, ('all', 'set', 'none'))}")
        if self.preset.ticks_per_clock != 1:
            raise HardwareError(f"preset: {self.preset.name} ticks at half clocks; PIM streams are timed in whole clocks")
        banks = self.banks
        taken: set[int] = set()
        for number, part in enumerate(self.sets):
            if part.members[-1] >= banks:
                raise HardwareError(f"sets.{number}: bank {part.members[-1]} does not exist, the channel has {banks}")
            if taken & set(part.members):
                raise HardwareError(f"sets.{number}: shares a bank with another set")
            taken |= set(part.members)
        return self

    @property
    def banks(self) -> int:
        return self.preset.pseudo_channels * self.preset.banks_per_pseudo_channel

    @cached_property
    def rules(self) -> Rules:
        return Rules(self.preset)

    def internal_peak(self, gap: int) -> Fraction:
        """Bytes per second that the units see when every bank of the largest set delivers a column each `gap` clocks."""
        banks = max(part.banks for part in self.sets)
        return Fraction(banks * self.preset.burst_bytes * 10**15, gap * self.preset.clock_fs)


class Rules:
    """The timing rules of a preset in clocks between first cycles of commands, as the PIM engines use them."""

    def __init__(self, preset: DramPreset) -> None:
        gap = self._gap = preset.gap_ticks
        self.act, self.pre = preset.act_ticks, preset.pre_ticks
        self.write_after_act = gap(preset.n_rcd_wr, "act", "column")
        self.rcd = preset.n_rcd_rd
        self.ras, self.rc, self.rrd = gap(preset.n_ras, "act", "pre"), preset.n_rc, preset.n_rrd_l
        self.rp = gap(preset.n_rp_ab, "pre", "act")
        self.rp_ref = gap(preset.n_rp_ab, "pre", "refresh")
        self.read_to_pre = gap(preset.n_rtp, "column", "pre")
        self.write_to_pre = gap(preset.n_cwl + preset.n_bl + preset.n_wr, "column", "pre")
        self.read_to_write = preset.n_rtw
        self.write_to_read = preset.n_cwl + preset.n_bl_max + preset.n_wtr_l
        self.refi, self.rfc = preset.n_refi, gap(preset.n_rfc, "refresh", "act")
        self.refresh_one = preset.refresh_ticks
        self.refresh = preset.refresh_ticks * preset.pseudo_channels

    def read_after_act(self, clocks: int = 0) -> int:
        """Clocks from an activate to the first read, or to one that needs `clocks` of its own."""
        return self._gap(clocks or self.rcd, "act", "column")


def _preset(name: str, standard: str, source: str, **fields: Any) -> DramPreset:
    fields.setdefault("n_rcd_wr", fields["n_rcd_rd"])
    fields.setdefault("n_rtw", fields["n_cl"] + fields["n_bl"] + 2 - fields["n_cwl"])
    return DramPreset(name=name, standard=standard, source=source, **fields)


HBM2_STAGES = {"cells": 0.44, "column mux": 1.01, "bank-group mux": 1.23, "tsv": 0.50, "interposer": 0.30}

# One source of timing each, never mixed.
HBM_PIM = _preset(
    "HBM-PIM-PC", "JESD235", "HBM2_samsung_2M_16B_x64 of Samsung's PIMSimulator, one pseudo channel; tRTW = RL + BL/2 + tRTRS - WL",
    bus_bits=64, data_rate_mtps=2000, burst_length=4, bank_groups=4, banks=4, rows=16384, row_bytes=1024, clock_ps=1000,
    n_bl=2, n_cl=20, n_cwl=8, n_rcd_rd=14, n_rcd_wr=10, n_rp=14, n_ras=33, n_rc=47, n_ccd_s=2, n_ccd_l=4, n_rrd_s=4, n_rrd_l=6,
    n_faw=16, n_wtr_s=4, n_wtr_l=9, n_rtp=5, n_wr=16, n_rtw=20 + 2 + 1 - 8, n_rfc=350, n_refi=3900,
    command_bus="row_column",
)  # fmt: skip
AIM = _preset(
    "GDDR6-AiM", "JESD250", "AiM simulator (arkhadem/aim_simulator), GDDR6_AiM_timing: its authors fitted it to SDK and board profiling",
    bus_bits=16, data_rate_mtps=16000, burst_length=16, bank_groups=4, banks=4, rows=16384, row_bytes=2048, clock_ps=500,
    n_bl=2, n_cl=50, n_cwl=6, n_rcd_rd=36, n_rcd_wr=28, n_rp=32, n_ras=54, n_rc=89, n_ccd_s=2, n_ccd_l=2, n_rrd_s=11, n_rrd_l=11,
    n_faw=42, n_wtr_s=9, n_wtr_l=11, n_rtp=12, n_wr=33, n_rtw=51, n_rfc=210, n_refi=3333,
)  # fmt: skip
ATTACC = PRESETS["HBM3-5.2-PC"].model_copy(update={"name": "AttAcc-CH", "pseudo_channels": 2})
NEUPIMS = _preset(
    "NeuPIMs-CH", "JESD235", "NeuPIMs simulator (HBM2_8Gb_x128_dualpim.ini), legacy 128-bit channel of two ranks; column spacing = burst",
    bus_bits=128, data_rate_mtps=2000, burst_length=4, ranks=2, bank_groups=4, banks=4, rows=32768, row_bytes=1024, clock_ps=1000,
    n_bl=2, n_cl=14, n_cwl=4, n_rcd_rd=14, n_rp=14, n_ras=34, n_rc=48, n_ccd_s=2, n_ccd_l=2, n_ccd_r=3, n_rrd_s=4, n_rrd_l=6,
    n_faw=30, n_wtr_s=6, n_wtr_l=8, n_rtp=6, n_wr=16, n_rfc=260, n_refi=3900,
    command_bus="row_column",
)  # fmt: skip
