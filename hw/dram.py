"""DRAM as a data sheet: geometry, timing, command bus and energy of one channel, and the closed forms that follow from them.

Every timing field is in clocks of `clock_ps` and keeps its standard name: `n_rcd_rd` is tRCD of a read, `n_ccd_l` the
column spacing inside a bank group. A rule counts from the last cycle of the first command to the last cycle of the
second one, as the standards do, so a two-cycle activate adds one clock in front of the first column command.
Bank state, queues and time belong to the simulator.
"""

from __future__ import annotations

from fractions import Fraction
from math import log2
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from hw.errors import HardwareError, nearest
from hw.part import Part

REQUEST_BYTES = 64
"""Size of one memory request: the cache line and sector-pair size that the request queues of this model hold."""

MAPPINGS = ("row", "interleaved")
FIELDS = ("row", "bank", "bg", "rank", "pc", "column")
"""Names of the address fields in a mapping, most significant first in the usual orders."""

Mapping = Literal["row", "interleaved"] | str
RowState = Literal["closed", "hit", "conflict"]


class DramEnergy(Part):
    """Energy of the commands of one channel, picojoules. None is a part that the source does not give.

    `activate_pj` covers one activate and the precharge that ends it. `read_pj_per_bit` and `write_pj_per_bit` list the
    locations a bit passes, from the cells outwards, so that an access which stops early costs only the locations it passes.
    `standby_mw` is drawn by the channel all the time.
    """

    activate_pj: float = Field(ge=0)
    read_pj_per_bit: dict[str, float]
    write_pj_per_bit: dict[str, float]
    refresh_pj: float | None = None
    standby_mw: float | None = None


class DramPreset(Part):
    """One channel of a DRAM device: what a controller drives with one set of command pins.

    A channel has `pseudo_channels` data buses of `bus_bits` each with separate banks; each has `ranks` (ranks of modules,
    stack identifiers of HBM) of `bank_groups` x `banks` banks. `row_bytes` is the row of one bank over the whole bus.
    `command_bus` is `shared`, or `row_column` where row and column commands travel on two buses, each shared by the
    pseudo channels. Command lengths (`act_ticks` and so on) are in ticks of 1/`ticks_per_clock` clock. `n_aad` > 0 marks
    an activate sent as two separate commands, the second within `n_aad` clocks; `n_wckpst` marks a data clock that stops
    that many clocks after a burst and then needs a synchronising command in front of the next column command.

    Raises `HardwareError` when the fields contradict each other.
    """

    name: str
    standard: str
    bus_bits: int = Field(ge=1)
    data_rate_mtps: int = Field(ge=1)
    burst_length: int = Field(ge=1)
    pseudo_channels: int = Field(default=1, ge=1)
    ranks: int = Field(default=1, ge=1)
    bank_groups: int = Field(ge=1)
    banks: int = Field(ge=1)
    rows: int = Field(ge=1)
    row_bytes: int = Field(ge=1)

    clock_ps: int = Field(ge=1)
    ticks_per_clock: Literal[1, 2] = 1
    n_bl: int = Field(ge=1)
    n_bl_max: int = 0  # burst span inside one bank group where it differs (LPDDR5); 0: n_bl
    n_cl: int = Field(ge=1)
    n_cwl: int = Field(ge=1)
    n_rcd_rd: int = Field(ge=1)
    n_rcd_wr: int = Field(ge=1)
    n_rp: int = Field(ge=1)
    n_rp_ab: int = 0  # all-bank precharge where it differs; 0: n_rp
    n_ras: int = Field(ge=1)
    n_rc: int = Field(ge=1)
    n_ccd_s: int = Field(ge=1)
    n_ccd_l: int = Field(ge=1)
    n_ccd_s_wr: int = 0  # 0: as reads
    n_ccd_l_wr: int = 0
    n_ccd_r: int = 0  # to another rank; needed when ranks > 1
    n_rrd_s: int = Field(ge=1)
    n_rrd_l: int = Field(ge=1)
    n_faw: int = Field(ge=1)
    n_wtr_s: int = Field(ge=1)
    n_wtr_l: int = Field(ge=1)
    n_rtp: int = Field(ge=1)
    n_wr: int = Field(ge=1)
    n_rtw: int = Field(ge=1)
    n_ppd: int = 0
    n_rfc: int = Field(ge=1)
    n_refi: int = Field(ge=1)

    command_bus: Literal["shared", "row_column"] = "shared"
    act_ticks: int = Field(default=1, ge=1)
    pre_ticks: int = Field(default=1, ge=1)
    column_ticks: int = Field(default=1, ge=1)
    refresh_ticks: int = Field(default=1, ge=1)
    n_aad: int = Field(default=0, ge=0)
    n_wckpst: int | None = None

    energy: DramEnergy | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            fields = dict(fields)
            for name, same in (("n_bl_max", "n_bl"), ("n_rp_ab", "n_rp"), ("n_ccd_s_wr", "n_ccd_s"), ("n_ccd_l_wr", "n_ccd_l")):
                if not fields.get(name) and same in fields:
                    fields[name] = fields[same]
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> DramPreset:
        wrong: list[tuple[str, str]] = []
        for field in ("bus_bits", "burst_length", "pseudo_channels", "ranks", "bank_groups", "banks", "rows", "row_bytes"):
            value = getattr(self, field)
            if value & (value - 1):
                low = 1 << (value.bit_length() - 1)
                wrong.append((field, f"expected a power of two, found {value}; the nearest are {low} and {2 * low}"))
        if self.bus_bits * self.burst_length % 8 == 0 and self.row_bytes % self.burst_bytes:
            wrong.append(("row_bytes", f"expected a multiple of the burst ({self.burst_bytes} B), found {self.row_bytes} B"))
        if REQUEST_BYTES % self.burst_bytes or self.row_bytes < REQUEST_BYTES:
            wrong.append(
                (
                    "burst_length",
                    f"a {REQUEST_BYTES} B request must be whole bursts inside one row of {self.row_bytes} B, "
                    f"found bursts of {self.burst_bytes} B",
                )
            )
        pins = Fraction(self.bus_bits, 8) * self.data_rate_mtps * 10**6
        clocked = Fraction(self.burst_bytes * 10**12, self.n_bl * self.clock_ps)
        if abs(pins - clocked) * 100 > pins:  # tables round the clock to whole picoseconds (14 Gb/s GDDR6: 570 for 571.4)
            wrong.append(
                (
                    "data_rate_mtps",
                    f"{self.bus_bits} bits at {self.data_rate_mtps} MT/s are {float(pins) / 1e9:.2f} GB/s, but a "
                    f"{self.burst_bytes} B burst every n_bl x clock_ps = {self.n_bl * self.clock_ps} ps is "
                    f"{float(clocked) / 1e9:.2f} GB/s; they must agree within 1 %",
                )
            )
        # Tables round tRAS, tRP and tRC up to clocks one by one: ceil(a) + ceil(b) may exceed ceil(a + b) by one, never by more.
        if self.n_rc < self.n_ras + self.n_rp - 1:
            wrong.append(
                ("n_rc", f"expected at least n_ras + n_rp - 1 = {self.n_ras + self.n_rp - 1} (one clock of rounding), found {self.n_rc}")
            )
        for small, large in (
            ("n_ccd_s", "n_ccd_l"),
            ("n_rrd_s", "n_rrd_l"),
            ("n_wtr_s", "n_wtr_l"),
            ("n_bl", "n_ccd_s"),
            ("n_rfc", "n_refi"),
        ):
            if getattr(self, small) > getattr(self, large):
                wrong.append((small, f"expected at most {large} = {getattr(self, large)}, found {getattr(self, small)}"))
        if self.ranks > 1 and not self.n_ccd_r:
            wrong.append(("n_ccd_r", f"missing: {self.ranks} ranks share a data bus and need a column spacing between them"))
        if wrong:
            raise HardwareError(items=wrong)
        return self

    @property
    def burst_bytes(self) -> int:
        """Bytes of one burst on the bus of one pseudo channel."""
        return self.bus_bits * self.burst_length // 8

    @property
    def bursts_per_request(self) -> int:
        """Bursts that one request of 64 bytes takes."""
        return REQUEST_BYTES // self.burst_bytes

    @property
    def tick_fs(self) -> int:
        """Femtoseconds of one tick, the resolution of the command bus."""
        return self.clock_ps * 1000 // self.ticks_per_clock

    @property
    def clock_fs(self) -> int:
        return self.clock_ps * 1000

    @property
    def banks_per_pseudo_channel(self) -> int:
        return self.ranks * self.bank_groups * self.banks

    @property
    def capacity(self) -> int:
        """Bytes of the channel."""
        return self.pseudo_channels * self.banks_per_pseudo_channel * self.rows * self.row_bytes

    @property
    def peak(self) -> Fraction:
        """Bytes per second of all data buses of the channel: a burst every n_bl clocks."""
        return Fraction(self.pseudo_channels * self.burst_bytes * 10**15, self.n_bl * self.clock_fs)

    def gap_ticks(self, clocks: int, first: str, second: str) -> int:
        """Ticks from the first cycle of command `first` to that of `second` for a rule of `clocks`, last cycle to last cycle.

        Commands are `act`, `pre`, `column` and `refresh`.
        """
        length = {"act": self.act_ticks, "pre": self.pre_ticks, "column": self.column_ticks, "refresh": self.refresh_ticks}
        return clocks * self.ticks_per_clock + length[first] - length[second]

    def edge(self, ticks: int) -> int:
        """The first tick at or after `ticks` on which a column, activate or refresh command may start: a rising clock edge."""
        return -(-ticks // self.ticks_per_clock) * self.ticks_per_clock


# --- closed forms ---------------------------------------------------------------------------------------------------


def idle_latency_fs(preset: DramPreset, state: RowState = "closed", size_bytes: int = REQUEST_BYTES) -> int:
    """Femtoseconds from the first command of a read on an idle channel to its last data beat.

    `closed`: n_rcd + n_cl + n_bl; `conflict` adds n_rp, `hit` leaves n_rcd out. Each further burst comes n_ccd_l later
    (same bank, same bank group). On top come what the command bus costs: the extra cycles of a longer activate, the wait
    for a rising edge, and one clock to restart a stopped data clock.
    Raises `HardwareError` for a size that is not one or more whole bursts inside a row.
    """
    if size_bytes < 1 or size_bytes % preset.burst_bytes or size_bytes > preset.row_bytes:
        raise HardwareError(
            f"{preset.name}: expected a multiple of {preset.burst_bytes} B up to the row of {preset.row_bytes} B, found {size_bytes} B"
        )
    start = 0
    if state == "conflict":
        start = preset.edge(preset.gap_ticks(preset.n_rp, "pre", "act"))
    if state != "hit":
        start = preset.edge(start + preset.gap_ticks(preset.n_rcd_rd, "act", "column"))
    if preset.n_wckpst is not None:
        start += preset.ticks_per_clock
    bursts = size_bytes // preset.burst_bytes
    spacing = preset.edge(max(preset.n_ccd_l, preset.n_bl) * preset.ticks_per_clock)
    ticks = start + (bursts - 1) * spacing + (preset.n_cl + preset.n_bl) * preset.ticks_per_clock
    return ticks * preset.tick_fs


def row_cycle_ticks(preset: DramPreset, bursts: int = 1) -> int:
    """Ticks between activates of one bank when every visit reads `bursts` bursts of another row."""
    read = preset.edge(preset.gap_ticks(preset.n_rcd_rd, "act", "column")) + (bursts - 1) * preset.edge(
        preset.n_ccd_l * preset.ticks_per_clock
    )
    sync = preset.ticks_per_clock if preset.n_wckpst is not None else 0  # the data clock stops between row visits
    pre = max(preset.gap_ticks(preset.n_ras, "act", "pre"), read + sync + preset.gap_ticks(preset.n_rtp, "column", "pre"))
    return preset.edge(max(preset.n_rc * preset.ticks_per_clock, pre + preset.gap_ticks(preset.n_rp, "pre", "act")))


def same_bank_bandwidth(preset: DramPreset, size_bytes: int = REQUEST_BYTES) -> Fraction:
    """Bytes per second when every `size_bytes` lie in another row of one bank: one row visit per row cycle (n_rc)."""
    bursts = size_bytes // preset.burst_bytes
    return Fraction(size_bytes * 10**15, row_cycle_ticks(preset, bursts) * preset.tick_fs)


def random_bound(preset: DramPreset) -> tuple[Fraction, str]:
    """The largest fraction of the peak that random reads of 64 bytes can reach, every one opening a row, and what binds.

    Per request and pseudo channel: bursts x n_bl of data bus against an activate every n_rrd_s, four per n_faw, one per
    bank and n_rc, and the slots of precharge, activate and column commands on the command buses.
    """
    bursts, ticks = preset.bursts_per_request, preset.ticks_per_clock
    data = Fraction(bursts * preset.n_bl * ticks)
    act = preset.act_ticks if preset.command_bus == "row_column" else preset.act_ticks + bursts * preset.column_ticks
    slots = act + preset.pre_ticks + (1 if preset.n_aad else 0)
    need = {
        "data bus": data,
        "tRRD": Fraction(preset.n_rrd_s * ticks),
        "tFAW": Fraction(preset.n_faw * ticks, 4),
        "tRC": Fraction(row_cycle_ticks(preset, bursts), preset.banks_per_pseudo_channel),
        "command bus": Fraction(slots * preset.pseudo_channels),
    }
    binds = max(need, key=lambda name: need[name])
    return data / need[binds], binds


def refresh_loss(preset: DramPreset) -> Fraction:
    """The least fraction of time that all-bank refresh takes: n_rfc / n_refi."""
    return Fraction(preset.n_rfc, preset.n_refi)


def refresh_gap_ticks(preset: DramPreset) -> int:
    """Ticks of data bus that one all-bank refresh costs a stream of reads: close the rows, refresh, open the first row again."""
    close = preset.gap_ticks(preset.n_rtp, "column", "pre") + preset.gap_ticks(preset.n_rp_ab, "pre", "refresh")
    back = preset.gap_ticks(preset.n_rfc, "refresh", "act") + preset.gap_ticks(preset.n_rcd_rd, "act", "column")
    return preset.edge(close) + preset.edge(back)


# --- address mappings -----------------------------------------------------------------------------------------------


def address_fields(preset: DramPreset, mapping: Mapping = "interleaved") -> tuple[tuple[str, int], ...]:
    """The mapping as (field, bits) from the least significant bit upwards, above the bytes of one burst.

    `row`: consecutive addresses fill a row, then go on in the next pseudo channel, rank, bank group and bank.
    `interleaved`: the bank group changes every 64 bytes, then the pseudo channel; rank, bank and row as in `row`.
    Any other order is spelled most significant first, with `column:N` for N of the column bits and one plain `column` for
    the rest, for example `row-bank-rank-column-pc-bg-column:1` (which is `interleaved` on a device with 32 byte bursts).
    Fields of zero bits may be left out. Raises `HardwareError` for an unknown, missing or repeated field.
    """
    size = {
        "row": preset.rows,
        "bank": preset.banks,
        "bg": preset.bank_groups,
        "rank": preset.ranks,
        "pc": preset.pseudo_channels,
        "column": preset.row_bytes // preset.burst_bytes,
    }
    bits = {field: count.bit_length() - 1 for field, count in size.items()}
    if mapping == "row":
        mapping = "row-bank-bg-rank-pc-column"
    elif mapping == "interleaved":
        mapping = f"row-bank-rank-column-pc-bg-column:{preset.bursts_per_request.bit_length() - 1}"
    elif "-" not in mapping:
        raise HardwareError(
            f"unknown mapping {mapping!r}, expected row, interleaved or an order such as row-bank-rank-column-pc-bg-column:1"
            f"{nearest(mapping, MAPPINGS)}"
        )
    parts: list[tuple[str, int]] = []
    rest, plain = bits["column"], 0
    for part in mapping.split("-"):
        field, _, count = part.partition(":")
        if field not in bits:
            raise HardwareError(
                f"mapping {mapping!r}: unknown field {field!r}, expected one of {', '.join(FIELDS)}{nearest(field, FIELDS)}"
            )
        if count and (field != "column" or not count.isdigit()):
            raise HardwareError(f"mapping {mapping!r}: only column takes a number of bits, as in column:1, found {part!r}")
        if field != "column" and any(name == field for name, _ in parts):
            raise HardwareError(f"mapping {mapping!r}: field {field!r} appears twice")
        if count:
            rest -= int(count)
        elif field == "column":
            plain += 1
        parts.append((field, int(count) if count else -1 if field == "column" else bits[field]))
    missing = [field for field in FIELDS if bits[field] and all(name != field for name, _ in parts)]
    if missing:
        raise HardwareError(f"mapping {mapping!r}: missing field {missing[0]!r} ({bits[missing[0]]} bits on {preset.name})")
    if rest < 0 or plain > 1 or (plain == 0 and rest):
        raise HardwareError(
            f"mapping {mapping!r}: the column of {preset.name} has {bits['column']} bits; use column:N pieces and one plain column"
        )
    return tuple((field, rest if count < 0 else count) for field, count in reversed(parts) if (rest if count < 0 else count))


# --- presets --------------------------------------------------------------------------------------------------------

_RAMULATOR = "Ramulator 2.1 (SAFARI Research Group, commit c5b1c3a)"
# O'Connor et al., "Fine-Grained DRAM: Energy-Efficient DRAM for Extreme Bandwidth Systems", MICRO 2017: energy by stage of HBM2.
_HBM2_STAGES = {"cell": 0.44, "column": 1.01, "bank_group": 1.23, "tsv": 0.50, "interface": 0.30}
_HBM2_ENERGY = DramEnergy(
    source="O'Connor et al., MICRO 2017, HBM2 stage energies; refresh and standby are not in the table",
    activate_pj=909.0,
    read_pj_per_bit=_HBM2_STAGES,
    write_pj_per_bit=_HBM2_STAGES,
)


def _preset(name: str, standard: str, source: str, **fields: Any) -> DramPreset:
    """A preset; tRTW defaults to the standard form n_cl + n_bl + 2 - n_cwl."""
    fields.setdefault("n_rcd_wr", fields["n_rcd_rd"])
    fields.setdefault("n_rtw", fields["n_cl"] + fields["n_bl"] + 2 - fields["n_cwl"])
    return DramPreset(name=name, standard=standard, source=source, **fields)


_HBM2: dict[str, Any] = {
    "bus_bits": 64, "data_rate_mtps": 2000, "burst_length": 4, "bank_groups": 4, "banks": 4, "rows": 32768, "row_bytes": 1024,
    "clock_ps": 1000, "n_bl": 2, "n_cl": 14, "n_cwl": 5, "n_rcd_rd": 14, "n_rcd_wr": 12, "n_rp": 14, "n_ras": 34, "n_rc": 48,
    "n_ccd_s": 2, "n_ccd_l": 4, "n_rrd_s": 4, "n_rrd_l": 4, "n_faw": 15, "n_wtr_s": 6, "n_wtr_l": 8, "n_rtp": 5, "n_wr": 16,
    "n_rfc": 260, "n_refi": 3900, "command_bus": "row_column", "act_ticks": 2, "energy": _HBM2_ENERGY,
}  # fmt: skip
# Ticked at half a clock: precharge and refresh take half a clock, an activate one and a half, precharge may use the falling edge.
_HBM3: dict[str, Any] = {
    "bus_bits": 32, "data_rate_mtps": 6400, "burst_length": 8, "ranks": 2, "bank_groups": 4, "banks": 4, "rows": 16384, "row_bytes": 1024,
    "clock_ps": 625, "ticks_per_clock": 2, "n_bl": 2, "n_cl": 20, "n_cwl": 10, "n_rcd_rd": 31, "n_rcd_wr": 15, "n_rp": 26, "n_ras": 45,
    "n_rc": 72, "n_ccd_s": 2, "n_ccd_l": 4, "n_ccd_r": 3, "n_rrd_s": 4, "n_rrd_l": 5, "n_faw": 24, "n_wtr_s": 7, "n_wtr_l": 10,
    "n_rtp": 9, "n_wr": 33, "n_rtw": 20, "n_ppd": 2, "n_rfc": 560, "n_refi": 6240, "command_bus": "row_column",
    "act_ticks": 3, "pre_ticks": 1, "column_ticks": 2, "refresh_ticks": 1,
}  # fmt: skip

PRESETS: dict[str, DramPreset] = {
    preset.name: preset
    for preset in (
        _preset(
            "DDR4-3200", "JESD79-4", f"{_RAMULATOR}, DDR4_8Gb_x8, DDR4_3200AA (JESD79-4 tables)",
            bus_bits=64, data_rate_mtps=3200, burst_length=8, bank_groups=4, banks=4, rows=65536, row_bytes=8192, clock_ps=625,
            n_bl=4, n_cl=22, n_cwl=16, n_rcd_rd=22, n_rp=22, n_ras=52, n_rc=74, n_ccd_s=4, n_ccd_l=8, n_rrd_s=4, n_rrd_l=8, n_faw=34,
            n_wtr_s=4, n_wtr_l=12, n_rtp=12, n_wr=24, n_rfc=576, n_refi=12480,
            energy=DramEnergy(
                source="DRAMsim3 (commit 2981759) DDR4_8Gb_x8_3200, eight devices at 1.2 V: VDD x (IDD4R - IDD3N) x burst x 8 and so on; "
                       "interface and termination are not in the currents",
                activate_pj=4200.0, read_pj_per_bit={"device": 5.43}, write_pj_per_bit={"device": 4.59}, refresh_pj=684_000.0,
                standby_mw=500.0,
            ),
        ),
        _preset(
            "DDR5-4800", "JESD79-5", f"{_RAMULATOR}, DDR5_16Gb_x8, DDR5_4800AN; tRTW with two clocks of write preamble",
            bus_bits=32, data_rate_mtps=4800, burst_length=16, bank_groups=8, banks=4, rows=65536, row_bytes=4096, clock_ps=416,
            n_bl=8, n_cl=34, n_cwl=32, n_rcd_rd=34, n_rp=34, n_ras=77, n_rc=111, n_ccd_s=8, n_ccd_l=12, n_ccd_s_wr=8, n_ccd_l_wr=48,
            n_rrd_s=8, n_rrd_l=12, n_faw=48, n_wtr_s=6, n_wtr_l=24, n_rtp=18, n_wr=72, n_rtw=34 + 8 + 2 - 32 + 2, n_ppd=2,
            n_rfc=710, n_refi=9375, act_ticks=2, column_ticks=2,
        ),
        _preset(
            "DDR5-6400", "JESD79-5", f"{_RAMULATOR}, DDR5_16Gb_x8, DDR5_6400AN; tRTW with two clocks of write preamble",
            bus_bits=32, data_rate_mtps=6400, burst_length=16, bank_groups=8, banks=4, rows=65536, row_bytes=4096, clock_ps=312,
            n_bl=8, n_cl=46, n_cwl=44, n_rcd_rd=46, n_rp=46, n_ras=103, n_rc=149, n_ccd_s=8, n_ccd_l=16, n_ccd_s_wr=8, n_ccd_l_wr=64,
            n_rrd_s=16, n_rrd_l=16, n_faw=64, n_wtr_s=5, n_wtr_l=32, n_rtp=24, n_wr=96, n_rtw=46 + 8 + 2 - 44 + 2, n_ppd=2,
            n_rfc=946, n_refi=12500, act_ticks=2, column_ticks=2,
        ),
        _preset(
            "LPDDR5-6400", "JESD209-5", f"{_RAMULATOR}, LPDDR5_16Gb_x16, LPDDR5_6400, bank-group mode, WCK 4:1 synchronised on demand",
            bus_bits=16, data_rate_mtps=6400, burst_length=16, bank_groups=4, banks=4, rows=65536, row_bytes=2048, clock_ps=1250,
            n_bl=2, n_bl_max=4, n_cl=17, n_cwl=9, n_rcd_rd=15, n_rp=15, n_rp_ab=17, n_ras=34, n_rc=49, n_ccd_s=2, n_ccd_l=4,
            n_rrd_s=4, n_rrd_l=4, n_faw=16, n_wtr_s=5, n_wtr_l=10, n_rtp=8, n_wr=28, n_ppd=2, n_rfc=224, n_refi=3125, n_aad=8, n_wckpst=1,
        ),
        _preset(
            "GDDR6-14G", "JESD250", f"{_RAMULATOR}, GDDR6_8Gb_x16, 14 Gb/s, one 16-bit channel; clock rounded to 570 ps",
            bus_bits=16, data_rate_mtps=14000, burst_length=16, bank_groups=4, banks=4, rows=16384, row_bytes=2048, clock_ps=570,
            n_bl=2, n_cl=24, n_cwl=6, n_rcd_rd=27, n_rcd_wr=16, n_rp=27, n_ras=53, n_rc=79, n_ccd_s=2, n_ccd_l=4, n_rrd_s=8, n_rrd_l=8,
            n_faw=29, n_wtr_s=9, n_wtr_l=11, n_rtp=4, n_wr=27, n_rtw=25, n_ppd=1, n_rfc=211, n_refi=3333,
        ),
        _preset(
            "GDDR6-16G", "JESD250", f"GDDR6-14G of {_RAMULATOR} at constant nanoseconds, each rounded up to 500 ps clocks",
            bus_bits=16, data_rate_mtps=16000, burst_length=16, bank_groups=4, banks=4, rows=16384, row_bytes=2048, clock_ps=500,
            n_bl=2, n_cl=28, n_cwl=7, n_rcd_rd=31, n_rcd_wr=19, n_rp=31, n_ras=61, n_rc=91, n_ccd_s=2, n_ccd_l=4, n_rrd_s=10, n_rrd_l=10,
            n_faw=34, n_wtr_s=11, n_wtr_l=13, n_rtp=5, n_wr=31, n_rtw=29, n_ppd=2, n_rfc=241, n_refi=3800,
            energy=DramEnergy(
                source="CENT power model (Gu et al., ASPLOS 2025): ACT 66.3 mW over tRC 44.5 ns, RD 438 mW and WR 553 mW over 1.25 ns, "
                       "5.5 pJ/b at the pins; refresh not in the model",
                activate_pj=66.3 * 44.5, read_pj_per_bit={"device": 438 * 1.25 / 256, "interface": 5.5},
                write_pj_per_bit={"device": 553 * 1.25 / 256, "interface": 5.5}, standby_mw=264.0,
            ),
        ),
        _preset("HBM2-PC", "JESD235", f"{_RAMULATOR}, HBM2_4Gb, HBM2_2000Mbps, one pseudo channel", **_HBM2),
        _preset("HBM2-CH", "JESD235", f"{_RAMULATOR}, HBM2_4Gb, HBM2_2000Mbps, two pseudo channels", **_HBM2, pseudo_channels=2),
        _preset(
            "HBM2E-PC", "JESD235", f"HBM2_2000Mbps of {_RAMULATOR} at constant nanoseconds, each rounded up to 625 ps clocks: "
            "vendors publish the rate of HBM2E (3.2 Gb/s) but not its timing",
            bus_bits=64, data_rate_mtps=3200, burst_length=4, bank_groups=4, banks=4, rows=32768, row_bytes=1024, clock_ps=625,
            n_bl=2, n_cl=23, n_cwl=8, n_rcd_rd=23, n_rcd_wr=20, n_rp=23, n_ras=55, n_rc=77, n_ccd_s=2, n_ccd_l=4, n_rrd_s=7, n_rrd_l=7,
            n_faw=24, n_wtr_s=10, n_wtr_l=13, n_rtp=8, n_wr=26, n_rfc=416, n_refi=6240, command_bus="row_column", act_ticks=2,
        ),
        _preset(
            "HBM3-5.2-PC", "JESD238", "AttAcc simulator (Park et al., ASPLOS 2024), HBM3_5.2Gbps, HBM3_8Gb_2R: its authors scaled HBM2",
            bus_bits=32, data_rate_mtps=5200, burst_length=8, ranks=2, bank_groups=4, banks=4, rows=16384, row_bytes=1024, clock_ps=769,
            n_bl=2, n_cl=19, n_cwl=6, n_rcd_rd=19, n_rp=19, n_ras=45, n_rc=63, n_ccd_s=2, n_ccd_l=4, n_ccd_r=2, n_rrd_s=2, n_rrd_l=4,
            n_faw=39, n_wtr_s=8, n_wtr_l=11, n_rtp=8, n_wr=21, n_rfc=456, n_refi=5070, command_bus="row_column", act_ticks=2,
            energy=DramEnergy(
                source="HBM2 stage energies of O'Connor et al., MICRO 2017, as the AttAcc simulator applies them to HBM3",
                activate_pj=909.0, read_pj_per_bit=_HBM2_STAGES, write_pj_per_bit=_HBM2_STAGES,
            ),
        ),
        _preset("HBM3-6.4-PC", "JESD238", f"{_RAMULATOR}, HBM3_16Gb_8hi, HBM3_6400Mbps, one pseudo channel", **_HBM3),
        _preset("HBM3-6.4-CH", "JESD238", f"{_RAMULATOR}, HBM3_16Gb_8hi, HBM3_6400Mbps, two pseudo channels", **_HBM3, pseudo_channels=2),
    )
}  # fmt: skip
"""Every preset by its name, one source of timing each."""


def preset(name: str) -> DramPreset:
    """The preset called `name`. Raises `HardwareError` with the nearest name."""
    found = PRESETS.get(name)
    if found is None:
        raise HardwareError(f"unknown memory preset {name!r}, expected one of {', '.join(PRESETS)}{nearest(name, PRESETS)}")
    return found


def preset_file(path: str | Path) -> DramPreset:
    """The preset that a YAML file describes, field by field; `like: NAME` takes what it leaves out from a known one.

    Raises `HardwareError` with every mistake, each placed in the file.
    """
    import yaml

    try:
        fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise HardwareError(f"{path}: cannot be read ({error.strerror if isinstance(error, OSError) else 'not text'})") from None
    except yaml.YAMLError as error:
        raise HardwareError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise HardwareError(f"{path}: expected the fields of a memory preset, such as `like: HBM2-PC` and `n_rfc: 350`")
    like = fields.pop("like", None)
    try:
        own = {"name": Path(path).stem, "source": f"as {like}, changed by {Path(path).name}"}
        known = {} if like is None else {**dict(preset(str(like))), **own}
        return DramPreset(**{**known, **fields})
    except HardwareError as error:
        raise error.within(str(path)) from None


# --- contiguous streams ---------------------------------------------------------------------------------------------

# Steady fraction of the peak of an endless stream, as (read, read with refresh, write, write with refresh). These are not
# free constants: each is the steady state of the burst engine (queues of 32, watermarks 26 and 6), which
# `benchmarks/memory.py --streams` prints and tests/sim/test_dram.py compares. Interleaved streams run at the peak unless
# the queue is too short to hide the row openings of two pseudo channels behind one command bus. Row streams do not: only
# while two rows are in the queue does the bus fill, the rest of a row runs at one burst per n_ccd_l.
STREAMS: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "DDR4-3200": {"interleaved": (1.0, 0.9496, 1.0, 0.9472), "row": (0.6298, 0.6154, 0.6298, 0.613)},
    "DDR5-4800": {"interleaved": (1.0, 0.9157, 1.0, 0.9043), "row": (0.9192, 0.8737, 0.319, 0.2958)},
    "DDR5-6400": {"interleaved": (0.9998, 0.9147, 0.9998, 0.9032), "row": (0.8463, 0.8364, 0.2391, 0.2219)},
    "LPDDR5-6400": {"interleaved": (1.0, 0.9152, 1.0, 0.9055), "row": (0.8, 0.7918, 0.8, 0.7828)},
    "GDDR6-14G": {"interleaved": (1.0, 0.9181, 1.0, 0.9121), "row": (0.6957, 0.7297, 0.7356, 0.7633)},
    "GDDR6-16G": {"interleaved": (0.9922, 0.9114, 1.0, 0.911), "row": (0.6667, 0.6961, 0.7111, 0.7411)},
    "HBM2-PC": {"interleaved": (1.0, 0.9234, 1.0, 0.919), "row": (1.0, 0.919, 1.0, 0.9201)},
    "HBM2-CH": {"interleaved": (0.9884, 0.9133, 0.9961, 0.9147), "row": (0.5246, 0.521, 0.5378, 0.5292)},
    "HBM2E-PC": {"interleaved": (1.0, 0.923, 1.0, 0.9199), "row": (0.8767, 0.8255, 0.9014, 0.8436)},
    "HBM3-5.2-PC": {"interleaved": (1.0, 0.9001, 1.0, 0.896), "row": (0.9412, 0.8696, 0.9412, 0.8667)},
    "HBM3-6.4-PC": {"interleaved": (0.9961, 0.8955, 0.9961, 0.8927), "row": (0.6465, 0.6256, 0.7033, 0.6838)},
    "HBM3-6.4-CH": {"interleaved": (0.8889, 0.8234, 0.9412, 0.8556), "row": (0.3975, 0.4218, 0.4638, 0.441)},
}


def _tabulated(preset: DramPreset) -> bool:
    known = PRESETS.get(preset.name)
    return known is preset or known == preset


def stream_fraction(preset: DramPreset, mapping: str = "interleaved", *, refresh: bool = True, write: bool = False) -> Fraction:
    """Fraction of the peak that a long contiguous stream reaches.

    For a preset of `PRESETS` the steady state of the burst engine (`STREAMS`); for any other one a bound: the peak less
    refresh when interleaved, one burst per n_ccd_l of it when rows are filled one after the other.
    Raises `HardwareError` for a mapping that is neither `row` nor `interleaved`.
    """
    if mapping not in MAPPINGS:
        raise HardwareError(f"a stream is costed for the mappings {' and '.join(MAPPINGS)}, not {mapping!r}{nearest(mapping, MAPPINGS)}")
    if _tabulated(preset):
        return Fraction(str(STREAMS[preset.name][mapping][2 * write + refresh]))
    spacing = preset.n_bl if mapping == "interleaved" else max(preset.n_bl, preset.n_ccd_l_wr if write else preset.n_ccd_l)
    lost = Fraction(refresh_gap_ticks(preset), preset.n_refi * preset.ticks_per_clock) if refresh else Fraction(0)
    return Fraction(preset.n_bl, spacing) * (1 - lost)


def stream_cost(
    preset: DramPreset, channels: int, size_bytes: int, mapping: str = "interleaved", refresh: bool = True, *, write: bool = False
) -> int:
    """Femtoseconds that `size_bytes` of a contiguous stream occupy `channels` channels, over which it is interleaved evenly.

    The first access's latency is not in it: see `idle_latency_fs`. Whole bursts are paid for. Raises `HardwareError` for
    no channel or a negative size.
    """
    if channels < 1 or size_bytes < 0:
        raise HardwareError(
            f"{preset.name}: expected at least one channel and no negative size, found {channels} channels and {size_bytes} B"
        )
    size = -(-size_bytes // preset.burst_bytes) * preset.burst_bytes
    rate = preset.peak * channels * stream_fraction(preset, mapping, refresh=refresh, write=write)
    return -(-size * 10**15 * rate.denominator // rate.numerator)


SCATTER_SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# Fraction of the peak of reads in contiguous chunks of SCATTER_SIZES bytes at random places, refresh on: the steady state of
# the burst engine, as STREAMS. Short chunks pay for rows that the queue cannot open in time.
SCATTERED: dict[str, dict[str, tuple[float, ...]]] = {
    "DDR4-3200": {
        "interleaved": (0.434, 0.434, 0.437, 0.855, 0.907, 0.878, 0.911, 0.932, 0.941),
        "row": (0.434, 0.87, 0.931, 0.92, 0.867, 0.778, 0.692, 0.566, 0.608),
    },
    "DDR5-4800": {
        "interleaved": (0.61, 0.61, 0.61, 0.609, 0.901, 0.895, 0.905, 0.911, 0.914),
        "row": (0.61, 0.906, 0.912, 0.912, 0.904, 0.866, 0.818, 0.867, 0.868),
    },
    "DDR5-6400": {
        "interleaved": (0.457, 0.457, 0.457, 0.457, 0.898, 0.859, 0.886, 0.901, 0.909),
        "row": (0.457, 0.905, 0.898, 0.899, 0.883, 0.82, 0.739, 0.818, 0.82),
    },
    "LPDDR5-6400": {
        "interleaved": (0.688, 0.682, 0.679, 0.837, 0.821, 0.865, 0.89, 0.903, 0.915),
        "row": (0.688, 0.841, 0.846, 0.805, 0.733, 0.654, 0.774, 0.776, 0.779),
    },
    "GDDR6-14G": {
        "interleaved": (0.437, 0.432, 0.429, 0.703, 0.761, 0.834, 0.875, 0.896, 0.918),
        "row": (0.437, 0.654, 0.725, 0.718, 0.672, 0.611, 0.698, 0.701, 0.705),
    },
    "GDDR6-16G": {
        "interleaved": (0.356, 0.351, 0.348, 0.605, 0.735, 0.806, 0.86, 0.89, 0.912),
        "row": (0.356, 0.571, 0.674, 0.676, 0.643, 0.593, 0.67, 0.675, 0.677),
    },
    "HBM2-PC": {
        "interleaved": (0.781, 0.789, 0.807, 0.88, 0.847, 0.884, 0.904, 0.923, 0.923),
        "row": (0.782, 0.891, 0.881, 0.827, 0.746, 0.896, 0.919, 0.919, 0.919),
    },
    "HBM2-CH": {
        "interleaved": (0.545, 0.539, 0.532, 0.545, 0.771, 0.819, 0.868, 0.895, 0.913),
        "row": (0.546, 0.658, 0.615, 0.533, 0.443, 0.494, 0.516, 0.518, 0.518),
    },
    "HBM2E-PC": {
        "interleaved": (0.479, 0.476, 0.477, 0.75, 0.785, 0.848, 0.884, 0.923, 0.923),
        "row": (0.48, 0.713, 0.78, 0.756, 0.692, 0.803, 0.826, 0.826, 0.826),
    },
    "HBM3-5.2-PC": {
        "interleaved": (0.369, 0.369, 0.368, 0.727, 0.841, 0.871, 0.887, 0.9, 0.9),
        "row": (0.369, 0.732, 0.868, 0.837, 0.782, 0.852, 0.867, 0.867, 0.868),
    },
    "HBM3-6.4-PC": {
        "interleaved": (0.592, 0.587, 0.582, 0.759, 0.801, 0.85, 0.874, 0.895, 0.895),
        "row": (0.593, 0.739, 0.723, 0.684, 0.627, 0.605, 0.618, 0.62, 0.621),
    },
    "HBM3-6.4-CH": {
        "interleaved": (0.451, 0.439, 0.423, 0.473, 0.549, 0.599, 0.727, 0.812, 0.822),
        "row": (0.452, 0.457, 0.432, 0.401, 0.362, 0.401, 0.403, 0.404, 0.407),
    },
}


def scattered_cost(
    preset: DramPreset, channels: int, size_bytes: int, mapping: str = "interleaved", refresh: bool = True, *, write: bool = False
) -> int:
    """Femtoseconds that one contiguous chunk at a random place occupies `channels` channels, chunks following one another.

    Each channel gets its share of the chunk; a chunk of fewer 64 byte blocks than channels keeps only some of them busy, so
    that many such chunks share the time. Between the sizes of `SCATTERED` the rate follows the logarithm of the share: within
    9 % of the burst engine there (DDR5-4800 from 512 to 1024 B: 15 % too slow), within 5 % at the sizes. Beyond them the
    chunk pays the stream rate and what the longest of them lost. Without refresh, and for writes, the rate scales as the
    stream's does. For a preset that is not in the table the bound is the stream, or an activate for every 64 bytes at the
    rate of `random_bound`. Raises `HardwareError` as `stream_cost` does.
    """
    stream = stream_cost(preset, channels, size_bytes, mapping, refresh, write=write)
    blocks = -(-size_bytes // REQUEST_BYTES)
    if blocks == 0:
        return 0
    share = max(REQUEST_BYTES, size_bytes // channels)
    if not _tabulated(preset):
        touched = (
            min(blocks, preset.bank_groups * preset.pseudo_channels * channels)
            if mapping == "interleaved"
            else -(-size_bytes // preset.row_bytes)
        )
        opening = Fraction(touched * REQUEST_BYTES * 10**15) / (preset.peak * random_bound(preset)[0] * channels)
        return max(stream, -int(-opening // 1))
    known = [Fraction(str(rate)) for rate in SCATTERED[preset.name][mapping]]
    steady = stream_fraction(preset, mapping)
    if share >= SCATTER_SIZES[-1]:
        extra = SCATTER_SIZES[-1] * 10**15 / preset.peak * max(Fraction(0), 1 / known[-1] - 1 / steady)
        return stream + -int(-extra // 1)
    at = next(i for i, size in enumerate(SCATTER_SIZES) if share < size) - 1
    low, high = SCATTER_SIZES[at], SCATTER_SIZES[at + 1]
    weight = Fraction(log2(share / low) / log2(high / low)).limit_denominator(1 << 20)
    rate = known[at] + weight * (known[at + 1] - known[at])
    rate *= stream_fraction(preset, mapping, refresh=refresh, write=write) / steady
    return -int(-(Fraction(blocks * REQUEST_BYTES * 10**15) / (preset.peak * rate * channels)) // 1)
