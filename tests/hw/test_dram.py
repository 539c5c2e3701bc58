"""DRAM data sheets: the closed forms of every preset, and presets that contradict themselves."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from hw.dram import (
    PRESETS,
    STREAMS,
    DramPreset,
    address_fields,
    idle_latency_fs,
    preset,
    random_bound,
    refresh_loss,
    row_cycle_ticks,
    same_bank_bandwidth,
    stream_cost,
    stream_fraction,
)
from hw.errors import HardwareError

# GB/s of one bus by pins x rate; the clock of a table is rounded to picoseconds, so the clocked peak may differ by 0.3 %
PIN_GBPS = {
    "DDR4-3200": 25.6, "DDR5-4800": 19.2, "DDR5-6400": 25.6, "LPDDR5-6400": 12.8, "GDDR6-14G": 28.0, "GDDR6-16G": 32.0, "HBM2-PC": 16.0,
    "HBM2-CH": 32.0, "HBM2E-PC": 25.6, "HBM3-5.2-PC": 20.8, "HBM3-6.4-PC": 25.6, "HBM3-6.4-CH": 51.2,
}  # fmt: skip
# extra clocks of the command bus in front of a column command: activates longer than column commands, a stopped data clock
EXTRA_CLOCKS = {"LPDDR5-6400": 1, "HBM2-PC": 1, "HBM2-CH": 1, "HBM2E-PC": 1, "HBM3-5.2-PC": 1, "HBM3-6.4-PC": 1, "HBM3-6.4-CH": 1}

all_presets = pytest.mark.parametrize("name", PRESETS)


@all_presets
def test_the_peak_is_pins_times_rate(name: str) -> None:
    p = PRESETS[name]
    assert float(p.peak) * 1e-9 == pytest.approx(PIN_GBPS[name], rel=0.003)
    assert p.peak == Fraction(p.pseudo_channels * p.burst_bytes * 10**12, p.n_bl * p.clock_ps)


@all_presets
def test_idle_latency_is_the_sum_of_the_timings(name: str) -> None:
    p, extra = PRESETS[name], EXTRA_CLOCKS.get(name, 0)
    burst, column = p.burst_bytes, p.n_cl + p.n_bl
    assert idle_latency_fs(p, "closed", burst) == (p.n_rcd_rd + column + extra) * p.clock_fs
    sync = 1 if name == "LPDDR5-6400" else 0
    assert idle_latency_fs(p, "hit", burst) == (column + sync) * p.clock_fs
    conflict = idle_latency_fs(p, "conflict", burst)
    assert abs(conflict - (p.n_rp + p.n_rcd_rd + column) * p.clock_fs) <= p.clock_fs
    assert idle_latency_fs(p, "hit", 2 * burst) - idle_latency_fs(p, "hit", burst) == p.n_ccd_l * p.clock_fs


@all_presets
def test_a_request_of_64_bytes_is_two_bursts_on_narrow_buses(name: str) -> None:
    assert PRESETS[name].bursts_per_request == (1 if name.startswith("DDR") else 2)


@all_presets
def test_one_bank_delivers_a_row_visit_per_row_cycle(name: str) -> None:
    p = PRESETS[name]
    clocks = max(p.n_rc, p.n_ras + p.n_rp)
    assert abs(row_cycle_ticks(p, p.bursts_per_request) - clocks * p.ticks_per_clock) <= p.ticks_per_clock
    assert float(same_bank_bandwidth(p)) == pytest.approx(64 / (clocks * p.clock_ps * 1e-12), rel=0.01)
    assert same_bank_bandwidth(p, p.row_bytes) > same_bank_bandwidth(p)


@pytest.mark.parametrize(
    ("name", "fraction", "binds"),
    [
        ("DDR4-3200", Fraction(4 * 4, 34), "tFAW"),  # 0.471
        ("DDR5-4800", Fraction(8 * 4, 48), "tFAW"),  # 0.667
        ("DDR5-6400", Fraction(8, 16), "tRRD"),
        ("LPDDR5-6400", Fraction(4, 5), "command bus"),  # ACT-1, ACT-2, PRE and two RD for four clocks of data
        ("GDDR6-14G", Fraction(2 * 2, 8), "tRRD"),
        ("GDDR6-16G", Fraction(2 * 2, 10), "tRRD"),
        ("HBM2-PC", Fraction(1), "data bus"),
        ("HBM2-CH", Fraction(2, 3), "command bus"),  # ACT 2 + PRE 1 on the row bus for 2 clocks of data per channel
        ("HBM2E-PC", Fraction(2 * 2, 7), "tRRD"),
        ("HBM3-5.2-PC", Fraction(2 * 2 * 4, 39), "tFAW"),
        ("HBM3-6.4-PC", Fraction(2 * 2 * 4, 24), "tFAW"),  # 0.667
        ("HBM3-6.4-CH", Fraction(2 * 2 * 4, 24), "tFAW"),
    ],
)
def test_random_reads_are_bound_by_activates_or_the_command_bus(name: str, fraction: Fraction, binds: str) -> None:
    assert random_bound(PRESETS[name]) == (fraction, binds)


@pytest.mark.parametrize(
    ("name", "percent"),
    [("DDR4-3200", 4.6), ("DDR5-4800", 7.6), ("LPDDR5-6400", 7.2), ("GDDR6-14G", 6.3), ("HBM2-PC", 6.7), ("HBM3-6.4-PC", 9.0)],
)
def test_refresh_loses_trfc_of_every_trefi(name: str, percent: float) -> None:
    assert float(refresh_loss(PRESETS[name])) * 100 == pytest.approx(percent, abs=0.05)


@all_presets
def test_geometry_multiplies_to_the_capacity_and_the_address_bits(name: str) -> None:
    p = PRESETS[name]
    for mapping in ("row", "interleaved"):
        bits = sum(count for _, count in address_fields(p, mapping))
        assert p.burst_bytes << bits == p.capacity


def test_capacities_are_those_of_the_devices() -> None:
    assert PRESETS["DDR4-3200"].capacity == 8 << 30  # eight 8 Gb devices
    assert PRESETS["GDDR6-14G"].capacity == 512 << 20  # half of an 8 Gb device with two channels
    assert PRESETS["HBM2-PC"].capacity == 512 << 20  # 4 Gb
    assert PRESETS["HBM3-6.4-CH"].capacity == 1 << 30  # 16 GiB over 16 channels


def test_interleaved_changes_the_bank_group_every_request() -> None:
    assert address_fields(PRESETS["HBM2-PC"], "interleaved")[:2] == (("column", 1), ("bg", 2))
    assert address_fields(PRESETS["DDR4-3200"], "interleaved")[0] == ("bg", 2)
    assert address_fields(PRESETS["HBM2-PC"], "row")[0] == ("column", 5)


@all_presets
def test_every_preset_names_one_source(name: str) -> None:
    assert PRESETS[name].source
    energy = PRESETS[name].energy
    assert energy is None or energy.source


def test_stages_of_hbm2_add_up_to_an_access_off_the_stack() -> None:
    energy = PRESETS["HBM2-PC"].energy
    assert energy is not None
    assert sum(energy.read_pj_per_bit.values()) == pytest.approx(3.48)  # pJ per bit, without the activate
    assert energy.activate_pj / (8 * 1024) == pytest.approx(0.11, abs=0.005)  # of a whole row


# --- streams --------------------------------------------------------------------------------------------------------


@all_presets
def test_a_stream_costs_its_bytes_at_the_rate_of_all_channels(name: str) -> None:
    p = PRESETS[name]
    size = 1 << 20
    one, eight = stream_cost(p, 1, size), stream_cost(p, 8, size)
    assert eight == pytest.approx(one / 8, abs=8)
    assert stream_cost(p, 8, 0) == 0
    assert stream_cost(p, 8, 1) == stream_cost(p, 8, p.burst_bytes)
    assert one >= Fraction(size * 10**15) / p.peak
    assert all(0 < rate <= 1 for rates in STREAMS[name].values() for rate in rates)


def test_a_changed_preset_is_costed_by_the_bound_instead_of_the_table() -> None:
    p = PRESETS["HBM2-PC"]
    doubled = DramPreset(**{**dict(p), "n_rfc": 520})
    assert stream_fraction(doubled, refresh=False) == 1
    # close (tRTP 5, tRP 14), refresh 520, open (tRCD 14); first cycle to first cycle a refresh hides the activate's second one
    assert float(stream_fraction(doubled)) == pytest.approx(1 - (520 + 5 + 14 + 14) / 3900, abs=0.001)
    assert stream_fraction(doubled, "row", refresh=False) == Fraction(1, 2)  # tBL / tCCD_L


@pytest.mark.parametrize(("channels", "size", "mapping", "message"), [
    (0, 64, "row", "at least one channel"),
    (1, -1, "row", "no negative size"),
    (1, 64, "rows", "not 'rows'; did you mean `row`"),
])  # fmt: skip
def test_a_stream_that_cannot_be_costed_is_refused(channels: int, size: int, mapping: str, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        stream_cost(PRESETS["HBM2-PC"], channels, size, mapping)


# --- presets that contradict themselves -----------------------------------------------------------------------------


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(HardwareError, match=r"unknown memory preset 'HBM2-P'.*did you mean `HBM2-PC`"):
        preset("HBM2-P")
    assert preset("HBM2-PC") is PRESETS["HBM2-PC"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_rate_mtps": 2100}, r"64 bits at 2100 MT/s are 16.80 GB/s, but a 32 B burst .* is 16.00 GB/s; they must agree within 1 %"),
        ({"n_rc": 46}, r"n_rc: expected at least n_ras \+ n_rp - 1 = 47 \(one clock of rounding\), found 46"),
        ({"row_bytes": 1000}, "row_bytes: expected a power of two, found 1000; the nearest are 512 and 1024"),
        ({"row_bytes": 16}, r"row_bytes: expected a multiple of the burst \(32 B\), found 16 B"),
        ({"bank_groups": 3}, "bank_groups: expected a power of two, found 3; the nearest are 2 and 4"),
        ({"banks": 6}, "banks: expected a power of two"),
        ({"rows": 32769}, "rows: expected a power of two"),
        ({"burst_length": 32, "n_bl": 16, "n_ccd_s": 16, "n_ccd_l": 16}, "must be whole bursts inside one row .* found bursts of 256 B"),
        ({"n_ccd_s": 5}, "n_ccd_s: expected at most n_ccd_l = 4, found 5"),
        ({"n_rfc": 4000}, "n_rfc: expected at most n_refi = 3900"),
        ({"ranks": 2}, "n_ccd_r: missing: 2 ranks share a data bus"),
        ({"n_cl": 0}, "n_cl: .*greater than or equal to 1"),
        ({"n_clk": 14}, "n_clk: unknown field; did you mean `n_cl`"),
    ],
)
def test_an_inconsistent_preset_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        DramPreset(**{**dict(PRESETS["HBM2-PC"]), **changes})


def test_every_mistake_of_a_preset_is_named_at_once() -> None:
    with pytest.raises(HardwareError) as caught:
        DramPreset(**{**dict(PRESETS["HBM2-PC"]), "rows": 3, "n_rc": 10})
    assert [path for path, _ in caught.value.items] == ["rows", "n_rc"]


@pytest.mark.parametrize("size", [0, 33, 2048])
def test_a_latency_of_no_whole_burst_is_refused(size: int) -> None:
    with pytest.raises(HardwareError, match="expected a multiple of 32 B up to the row of 1024 B"):
        idle_latency_fs(PRESETS["HBM2-PC"], "closed", size)
