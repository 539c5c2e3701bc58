"""DRAM in time: exact latencies and bounds, every timing rule on recorded commands, conservation, and chunk against burst."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from hw.channels import Channels
from hw.dram import (
    PRESETS,
    SCATTER_SIZES,
    SCATTERED,
    STREAMS,
    DramPreset,
    address_fields,
    idle_latency_fs,
    random_bound,
    refresh_loss,
    row_cycle_ticks,
    same_bank_bandwidth,
    scattered_cost,
    stream_cost,
)
from hw.errors import HardwareError
from sim.dram import load_latency, serve, simulate
from sim.dram_burst import ACT, ACT2, CAS, PRE, PREAB, RD, REF, WR
from sim.patterns import Requests, requests, same_bank_stride
from sim.services import DramService

NAMES = list(PRESETS)
presets = pytest.mark.parametrize("preset", PRESETS.values(), ids=NAMES)


def reads(*addresses: int) -> Requests:
    return Requests(np.array(addresses, np.int64), np.zeros(len(addresses), bool))


# --- closed forms ---------------------------------------------------------------------------------------------------


@presets
def test_an_idle_closed_bank_takes_activate_column_and_burst(preset: DramPreset) -> None:
    served = serve(preset, reads(0), refresh=False)
    assert served.latency_ticks[0] * preset.tick_fs == idle_latency_fs(preset, "closed")


@presets
def test_an_idle_row_hit_takes_column_and_burst(preset: DramPreset) -> None:
    later = 4 * preset.n_rc * preset.ticks_per_clock
    served = serve(preset, reads(0, 0), refresh=False, arrival_ticks=np.array([0, later]))
    assert served.latency_ticks[1] * preset.tick_fs == idle_latency_fs(preset, "hit")


@presets
def test_an_idle_row_conflict_adds_the_precharge(preset: DramPreset) -> None:
    later = 4 * preset.n_rc * preset.ticks_per_clock
    served = serve(preset, reads(0, same_bank_stride(preset)), refresh=False, arrival_ticks=np.array([0, later]))
    assert served.latency_ticks[1] * preset.tick_fs == idle_latency_fs(preset, "conflict")


@presets
def test_two_bursts_in_one_bank_group_come_tccd_l_apart(preset: DramPreset) -> None:
    served = serve(preset, reads(0, 64), mapping="row", refresh=False, record=True)
    columns = [tick for tick, command, *_ in served.commands.tolist() if command == RD]
    assert columns[1] - columns[0] == preset.n_ccd_l * preset.ticks_per_clock


@presets
def test_rows_of_one_bank_come_one_per_row_cycle(preset: DramPreset) -> None:
    n = 500
    served = serve(preset, requests(preset, "stride", 64 * n), refresh=False)
    cycle = row_cycle_ticks(preset, preset.bursts_per_request)
    assert served.end_ticks == (n - 1) * cycle + served.latency_ticks[0]
    assert served.activates == n
    assert float(same_bank_bandwidth(preset)) == pytest.approx(64 / (cycle * preset.tick_fs * 1e-15))
    # the row cycle is tRC, or tRAS + tRP where the tables round these up separately, or the reads of the visit
    assert 0 <= cycle - preset.n_rc * preset.ticks_per_clock <= preset.ticks_per_clock


@presets
def test_random_reads_stay_below_their_bound_and_near_it_when_activates_bind(preset: DramPreset) -> None:
    bound, binds = random_bound(preset)
    result = simulate(preset, "random", 1 << 20, refresh=False)
    assert result.fraction <= float(bound) * 1.001  # a random row is now and then open already
    if binds in ("tFAW", "tRRD") and preset.pseudo_channels == 1:
        assert result.fraction > 0.9 * float(bound)


@presets
def test_refresh_takes_its_share_of_an_interleaved_stream(preset: DramPreset) -> None:
    without = simulate(preset, "stream", 1 << 22, refresh=False).fraction
    share = 1 - simulate(preset, "stream", 1 << 22).fraction / without
    loss = float(refresh_loss(preset))
    reopening = (preset.n_rtp + preset.n_rp_ab + preset.n_rcd_rd + preset.n_rc) * preset.pseudo_channels / preset.n_refi
    assert share <= loss + reopening
    if preset.name != "HBM3-6.4-CH":  # its queue, not its bus, limits the stream: part of the refresh hides in the gaps
        assert share >= loss * 0.98


@presets
def test_a_stream_over_bank_groups_reaches_the_peak(preset: DramPreset) -> None:
    fraction = simulate(preset, "stream", 1 << 22, refresh=False).fraction
    # two HBM3 pseudo channels empty a queue of 32 bursts faster than four bank groups of each can change rows
    assert fraction > (0.88 if preset.name == "HBM3-6.4-CH" else 0.985)


@pytest.mark.parametrize("name", ["DDR4-3200", "GDDR6-14G", "GDDR6-16G", "HBM3-6.4-PC"])
def test_a_row_mapped_stream_loses_a_third_on_devices_with_bank_groups(name: str) -> None:
    assert 0.6 < simulate(PRESETS[name], "stream", 1 << 22, mapping="row", refresh=False).fraction < 0.72


@pytest.mark.parametrize("name", ["GDDR6-14G", "GDDR6-16G"])
def test_refresh_makes_row_mapped_streams_of_gddr6_faster(name: str) -> None:
    fractions = [simulate(PRESETS[name], "stream", 1 << 22, mapping="row", refresh=on).fraction for on in (False, True)]
    assert fractions[1] > fractions[0] * 1.03


# --- every rule, on recorded commands -------------------------------------------------------------------------------


def violations(preset: DramPreset, commands: list[list[int]]) -> list[str]:
    """Checks each pair of commands against the rules of the standard, last cycle to last cycle, in plain Python."""
    t = preset.ticks_per_clock
    length = {ACT: preset.act_ticks, ACT2: preset.act_ticks, PRE: preset.pre_ticks, PREAB: preset.pre_ticks, REF: preset.refresh_ticks,
              RD: preset.column_ticks, WR: preset.column_ticks, CAS: t}  # fmt: skip
    groups, banks = preset.bank_groups, preset.banks
    per_pc = preset.ranks * groups * banks
    bad: list[str] = []
    last: dict[tuple[object, ...], int] = {}  # (command, scope...) -> last cycle of the most recent one
    acts: dict[int, list[int]] = defaultdict(list)
    row_of: dict[int, int] = {}
    bus_free = {"row": 0, "column": 0}

    def need(rule: str, clocks: int, key: tuple[object, ...], end: int) -> None:
        if key in last and end - last[key] < clocks * t:
            bad.append(f"{rule}: {end - last[key]} ticks after {key}, needs {clocks * t}")

    for tick, command, bank, row, _ in commands:
        pc, rank, group = bank // per_pc, bank // (groups * banks), bank // banks
        end = tick + length[command]
        bus = "column" if preset.command_bus == "row_column" and command in (RD, WR) else "row"
        if tick < bus_free[bus]:
            bad.append(f"command bus: command {command} at {tick}, free at {bus_free[bus]}")
        bus_free[bus] = end
        if command not in (PRE, PREAB) and tick % t:
            bad.append(f"command {command} at {tick} is not on a rising edge")
        if command == ACT:
            if bank in row_of:
                bad.append(f"ACT of open bank {bank}")
            need("tRC", preset.n_rc, (ACT, "bank", bank), end)
            need("tRP", preset.n_rp, (PRE, "bank", bank), end)
            need("tRRD_L", preset.n_rrd_l, (ACT, "group", group), end)
            need("tRRD_S", preset.n_rrd_s, (ACT, "pc", pc), end)
            need("tRFC", preset.n_rfc, (REF, "pc", pc), end)
            if len(acts[pc]) >= 4 and end - acts[pc][-4] < preset.n_faw * t:
                bad.append("tFAW")
            acts[pc].append(end)
            row_of[bank] = row
            scopes: list[tuple[object, ...]] = [("bank", bank), ("group", group), ("pc", pc)]
        elif command == PRE:
            need("tRAS", preset.n_ras, (ACT, "bank", bank), end)
            need("tRTP", preset.n_rtp, (RD, "bank", bank), end)
            need("tWR", preset.n_cwl + preset.n_bl + preset.n_wr, (WR, "bank", bank), end)
            need("tPPD", preset.n_ppd, ("any PRE", pc), end)
            last["any PRE", pc] = end
            row_of.pop(bank, None)
            scopes = [("bank", bank), ("pc", pc)]
        elif command == PREAB:
            for b in range(pc * per_pc, (pc + 1) * per_pc):
                need("tRAS", preset.n_ras, (ACT, "bank", b), end)
                need("tRTP", preset.n_rtp, (RD, "bank", b), end)
                need("tWR", preset.n_cwl + preset.n_bl + preset.n_wr, (WR, "bank", b), end)
                row_of.pop(b, None)
            need("tPPD", preset.n_ppd, ("any PRE", pc), end)
            last["any PRE", pc] = end
            scopes = [("pc", pc)]
        elif command == REF:
            if any(b // per_pc == pc for b in row_of):
                bad.append(f"REFab of pseudo channel {pc} with an open bank")
            need("tRP", preset.n_rp, (PRE, "pc", pc), end)
            need("tRPab", preset.n_rp_ab, (PREAB, "pc", pc), end)
            need("tRFC", preset.n_rfc, (REF, "pc", pc), end)
            scopes = [("pc", pc)]
        elif command in (RD, WR):
            write = command == WR
            if row_of.get(bank) != row:
                bad.append(f"access to row {row} of bank {bank}, which has {row_of.get(bank)} open")
            need("tRCD", preset.n_rcd_wr if write else preset.n_rcd_rd, (ACT, "bank", bank), end)
            need("tCCD_L", preset.n_ccd_l_wr if write else preset.n_ccd_l, (command, "group", group), end)
            need("tCCD_S", preset.n_ccd_s_wr if write else preset.n_ccd_s, (command, "rank", rank), end)
            need("tBL", preset.n_bl, (command, "pc", pc), end)
            for other in range(pc * preset.ranks, (pc + 1) * preset.ranks):
                if other != rank:
                    need("tCCD_R", preset.n_ccd_r, (command, "rank", other), end)
            if write:
                need("tRTW", preset.n_rtw, (RD, "pc", pc), end)
            else:
                need("tWTR_S", preset.n_cwl + preset.n_bl + preset.n_wtr_s, (WR, "pc", pc), end)
                need("tWTR_L", preset.n_cwl + preset.n_bl_max + preset.n_wtr_l, (WR, "group", group), end)
            scopes = [("bank", bank), ("group", group), ("rank", rank), ("pc", pc)]
        elif command == ACT2:
            if tick - (last[ACT, "bank", bank] - length[ACT]) > preset.n_aad * t:
                bad.append("tAAD")
            scopes = []
        else:
            scopes = []
        for scope in scopes:
            last[(command, *scope)] = end
    return bad


def mixed_traffic(preset: DramPreset, mapping: str, seed: int) -> Requests:
    """Runs of hits, conflicts, row changes and writes in one bank and over all of them."""
    rng = np.random.default_rng(seed)
    parts = [
        requests(preset, "mixed", 64 * 600, seed=seed),
        requests(preset, "stream", 64 * 400),
        requests(preset, "chunks", 256 * 100, chunk_bytes=256, seed=seed),
        requests(preset, "stride", 64 * 60, mapping=mapping),
        requests(preset, "triad", 64 * 600),
        Requests(rng.integers(0, 32, 300) * same_bank_stride(preset, mapping), rng.random(300) < 0.5),
    ]
    return Requests(np.concatenate([p.addresses for p in parts]), np.concatenate([p.writes for p in parts]))


@presets
@pytest.mark.parametrize("mapping", ["interleaved", "row"])
def test_recorded_commands_break_no_rule(preset: DramPreset, mapping: str) -> None:
    frequent = DramPreset(**{**dict(preset), "n_refi": 3 * preset.n_rfc})
    served = serve(frequent, mixed_traffic(preset, mapping, 7), mapping=mapping, record=True)
    commands = served.commands.tolist()
    assert violations(frequent, commands) == []
    kinds = {command for _, command, *_ in commands}
    assert {ACT, PRE, RD, WR, PREAB, REF} <= kinds
    assert [tick for tick, *_ in commands] == sorted(tick for tick, *_ in commands)


STRICTER = {
    "HBM2-PC": ("n_rc", "n_rrd_s", "n_ccd_l", "n_rtw", "n_rtp", "n_wr", "n_wtr_l", "n_rcd_rd", "n_rcd_wr", "n_rp", "n_rfc"),
    "HBM3-5.2-PC": ("n_faw", "n_rrd_l"),
    "HBM3-6.4-PC": ("n_ccd_r", "n_ppd"),
    "DDR5-4800": ("n_ccd_l_wr", "n_ras", "n_wtr_s"),
    "LPDDR5-6400": ("n_rp_ab",),
}


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in STRICTER.items() for field in fields])
def test_the_engine_issues_commands_at_the_very_limit_of_a_rule(name: str, field: str) -> None:
    """Which shows at once that the checker sees a rule broken by one clock."""
    preset = PRESETS[name].model_copy(update={"n_refi": 3 * PRESETS[name].n_rfc})
    commands = serve(preset, mixed_traffic(preset, "row", 7), mapping="row", record=True).commands.tolist()
    stricter = preset.model_copy(update={field: getattr(preset, field) + 1})
    assert violations(stricter, commands), f"no command stands at its {field}"


# --- conservation ---------------------------------------------------------------------------------------------------


@presets
def test_bytes_commands_and_energy_add_up(preset: DramPreset) -> None:
    wanted = mixed_traffic(preset, "interleaved", 3)
    served = serve(preset, wanted, record=True)
    bursts = preset.bursts_per_request
    assert served.writes == bursts * int(wanted.writes.sum())
    assert served.reads + served.writes == bursts * len(wanted)
    count: dict[int, int] = defaultdict(int)
    beats: dict[int, int] = defaultdict(int)
    for tick, command, _, _, request in served.commands.tolist():
        count[command] += 1
        if command in (RD, WR):
            beats[request] = max(
                beats[request], tick + ((preset.n_cwl if command == WR else preset.n_cl) + preset.n_bl) * preset.ticks_per_clock
            )
    assert (count[ACT], count[RD], count[WR], count[REF]) == (served.activates, served.reads, served.writes, served.refreshes)
    assert max(beats.values()) == served.end_ticks
    # a request is through at its last beat, and its latency reaches back to its arrival, never before the start
    ends = np.array([beats[i] for i in range(len(wanted))])
    assert (ends - served.latency_ticks >= 0).all()
    result = simulate(preset, wanted)
    assert 0 < result.fraction <= 1
    assert result.row_hits + result.activates == served.reads + served.writes
    assert result.bytes == 64 * len(wanted)
    if preset.energy is None:
        assert result.energy_j is None
    else:
        bits = 8 * preset.burst_bytes
        expected = count[ACT] * preset.energy.activate_pj
        expected += count[RD] * bits * sum(preset.energy.read_pj_per_bit.values())
        expected += count[WR] * bits * sum(preset.energy.write_pj_per_bit.values())
        expected += count[REF] * (preset.energy.refresh_pj or 0)
        expected += (preset.energy.standby_mw or 0) * 1e9 * result.time_s
        assert result.energy_j == pytest.approx(expected * 1e-12)


def test_the_same_requests_give_the_same_result() -> None:
    first, again = (simulate(PRESETS["HBM3-6.4-CH"], "mixed", 1 << 18, seed=5) for _ in range(2))
    assert first == again


@presets
def test_a_read_alone_is_not_slower_than_under_load(preset: DramPreset) -> None:
    curve = load_latency(preset, points=4)
    assert [bandwidth for bandwidth, *_ in curve] == sorted(bandwidth for bandwidth, *_ in curve)
    assert curve[0][1] < curve[-1][1]
    assert curve[0][1] >= idle_latency_fs(preset, "hit", preset.burst_bytes) * 1e-6


# --- chunk against burst --------------------------------------------------------------------------------------------


@presets
@pytest.mark.parametrize("mapping", ["interleaved", "row"])
@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("write", [False, True])
def test_chunk_streams_agree_with_burst_streams_within_two_percent(preset: DramPreset, mapping: str, refresh: bool, write: bool) -> None:
    settings: dict[str, Any] = {"mapping": mapping, "refresh": refresh, "write": write}
    burst = simulate(preset, "stream", 1 << 23, **settings)
    chunk = simulate(preset, "stream", 1 << 23, mode="chunk", **settings)
    assert chunk.bandwidth_gbps == pytest.approx(burst.bandwidth_gbps, rel=0.005)
    assert chunk.activates == pytest.approx(burst.activates, rel=0.07)
    assert chunk.latency_ns.mean == pytest.approx(burst.latency_ns.mean, rel=0.1)


@presets
@pytest.mark.parametrize(("pattern", "chunk_bytes"), [("random", 0), ("mixed", 0), ("chunks", 1024), ("stride", 0)])
def test_chunk_agrees_with_burst_within_five_percent(preset: DramPreset, pattern: str, chunk_bytes: int) -> None:
    size = 3 << 22
    burst = simulate(preset, pattern, size, chunk_bytes=chunk_bytes)
    chunk = simulate(preset, pattern, size, chunk_bytes=chunk_bytes, mode="chunk")
    assert chunk.bandwidth_gbps == pytest.approx(burst.bandwidth_gbps, rel=0.02)
    assert chunk.activates == pytest.approx(burst.activates, rel=0.02)
    assert chunk.latency_ns.mean == pytest.approx(burst.latency_ns.mean, rel=0.05)


@presets
def test_the_table_of_stream_rates_is_the_steady_state_of_the_burst_engine(preset: DramPreset) -> None:
    for mapping, rates in STREAMS[preset.name].items():
        for (write, refresh), rate in zip(((False, False), (False, True), (True, False), (True, True)), rates, strict=True):
            half, whole = (
                serve(preset, requests(preset, "stream", size, write=write), mapping=mapping, refresh=refresh).end_ticks
                for size in (1 << 23, 1 << 24)
            )
            steady = Fraction((1 << 23) * 10**15, (whole - half) * preset.tick_fs) / preset.peak
            assert float(steady) == pytest.approx(rate, abs=0.003)


# --- the memory of a device -----------------------------------------------------------------------------------------


@presets
def test_back_to_back_transfers_stream_at_the_closed_form(preset: DramPreset) -> None:
    service = DramService(Channels(preset=preset, channels=8))
    size, end = 1 << 20, 0
    for _ in range(16):
        end = service.transfer(0, size, write=False)
    assert end == pytest.approx(stream_cost(preset, 8, 16 * size), rel=0.001)
    assert end >= stream_cost(preset, 8, 16 * size)
    assert service.bytes_read == 16 * size
    assert Fraction(16 * size * 10**15, end) <= service.peak


def test_a_transfer_that_finds_the_memory_idle_waits_for_its_row() -> None:
    preset = PRESETS["HBM2-PC"]
    service = DramService(Channels(preset=preset, channels=4))
    size = 4 * 64
    end = service.transfer(10**9, size, write=False)
    first = idle_latency_fs(preset, "closed", 32) - preset.n_bl * preset.clock_fs
    assert end == 10**9 + first + scattered_cost(preset, 4, size)
    again = service.transfer(2 * 10**9, size, write=False)  # the next bytes of the rows just opened
    assert again == 2 * 10**9 + preset.n_cl * preset.clock_fs + stream_cost(preset, 4, size)


def test_turning_the_bus_around_costs_time() -> None:
    preset = PRESETS["DDR4-3200"]
    one_way, both_ways = DramService(Channels(preset=preset, channels=2)), DramService(Channels(preset=preset, channels=2))
    for i in range(20):
        straight = one_way.transfer(0, 4096, write=False, address=0)
        turning = both_ways.transfer(0, 4096, write=i % 2 == 1, address=0)
    # ten turns to writes: tRTW + tCWL - tCL - tBL = 12 + 16 - 22 - 4 = 2 clocks; nine back: tWTR_S + tCL = 4 + 22 clocks
    rates = Fraction(str(STREAMS["DDR4-3200"]["interleaved"][1])), Fraction(str(STREAMS["DDR4-3200"]["interleaved"][3]))
    slower = 10 * 4096 * 10**15 * (1 / rates[1] - 1 / rates[0]) / (preset.peak * 2)
    assert turning - straight == pytest.approx(float((10 * 2 + 9 * 26) * 625_000 + slower), abs=40)


@presets
@pytest.mark.parametrize("chunk_bytes", [64, 512, 768, 4096, 65536])
def test_scattered_transfers_take_the_time_of_the_burst_engine(preset: DramPreset, chunk_bytes: int) -> None:
    count = max(64, min(4000, (1 << 21) // chunk_bytes))
    wanted = requests(preset, "chunks", count * chunk_bytes, chunk_bytes=chunk_bytes, seed=9)
    exact = serve(preset, wanted).end_ticks * preset.tick_fs
    service = DramService(Channels(preset=preset, channels=1))
    for address in wanted.addresses[:: chunk_bytes // 64].tolist():
        end = service.transfer(0, chunk_bytes, write=False, address=address)
    # Between the tabulated sizes the rate is interpolated. On DDR5-4800 it jumps from 0.61 at 512 B, one burst in each of
    # eight bank groups, to the refresh-limited rate as soon as a second burst of each row shares the activate.
    between = 0.16 if preset.name == "DDR5-4800" else 0.09
    assert end == pytest.approx(exact, rel=between if chunk_bytes == 768 else 0.05)


def test_the_table_of_scattered_rates_is_the_steady_state_of_the_burst_engine() -> None:
    for name in ("DDR4-3200", "GDDR6-14G", "HBM3-6.4-CH"):
        for mapping in ("interleaved", "row"):
            for size, rate in list(zip(SCATTER_SIZES, SCATTERED[name][mapping], strict=True))[::3]:
                assert simulate(PRESETS[name], "chunks", 1 << 22, chunk_bytes=size, mapping=mapping).fraction == pytest.approx(
                    rate, rel=0.015
                )


def test_transfers_of_one_block_share_the_channels() -> None:
    preset = PRESETS["HBM2-PC"]
    assert scattered_cost(preset, 8, 64) == pytest.approx(scattered_cost(preset, 1, 64) / 8, abs=2)
    assert scattered_cost(preset, 8, 8 * 1024) == pytest.approx(scattered_cost(preset, 1, 1024), rel=1e-9)
    assert scattered_cost(preset, 8, 0) == 0
    assert stream_cost(preset, 8, 1 << 20) < scattered_cost(preset, 8, 1 << 20) < 1.02 * stream_cost(preset, 8, 1 << 20)


def test_a_preset_of_its_own_scatters_at_the_activate_bound() -> None:
    preset = DramPreset(**{**dict(PRESETS["DDR4-3200"]), "name": "mine"})
    # four activates per tFAW, 64 bytes each
    assert scattered_cost(preset, 1, 64) == pytest.approx(preset.n_faw * preset.clock_fs / 4, rel=1e-6)


def test_a_later_call_never_changes_an_earlier_answer() -> None:
    calls = [(i * 40_000, 64 << (i * 7 % 9), i % 3 == 0) for i in range(200)]
    ends = []
    for length in (50, 200):
        service = DramService(Channels(preset="HBM3-6.4-PC", channels=16))
        ends.append([service.transfer(now, size, write=write) for now, size, write in calls[:length]])
    assert ends[0] == ends[1][:50]
    assert all(end > now for end, (now, _, _) in zip(ends[1], calls, strict=True))


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_stream_larger_than_the_channel_is_refused_with_the_missing_bytes() -> None:
    preset = PRESETS["HBM2-PC"]
    for mode in ("burst", "chunk"):
        with pytest.raises(HardwareError, match=r"one channel of HBM2-PC holds 536870912 B \(536870912 B missing\)"):
            simulate(preset, "stream", 1 << 30, mode=mode)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "randon"}, "unknown pattern 'randon'.*did you mean `random`"),
        ({"mode": "burts"}, "unknown mode 'burts'.*did you mean `burst`"),
        ({"mapping": "interleavd"}, "unknown mapping 'interleavd'.*did you mean `interleaved`"),
        ({"mapping": "row-bank-bg"}, "missing field 'column'"),
        ({"mapping": "row-bank-bg-bg-column"}, "field 'bg' appears twice"),
        ({"mapping": "row-bank-bg-colum"}, "unknown field 'colum'.*did you mean `column`"),
        ({"mapping": "row-bank-bg-column:9"}, "the column of DDR4-3200 has 7 bits"),
        ({"size_bytes": 100}, "whole 64 B requests, found 100 B"),
        ({"size_bytes": 0}, "whole 64 B requests, found 0 B"),
        ({"pattern": "chunks", "chunk_bytes": 96}, "chunk of whole 64 B requests"),
        ({"pattern": "stride", "stride_bytes": 100}, "a multiple of 64 B, found 100 B"),
        ({"queue": 0, "high": 1, "low": 0}, "a queue of at least 1 bursts"),
        ({"high": 4, "low": 9}, "0 <= low watermark < high watermark"),
    ],
)
def test_a_bad_argument_is_refused_with_the_reason(arguments: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"pattern": "stream", "size_bytes": 1 << 16, **arguments}
    with pytest.raises(HardwareError, match=message):
        simulate(PRESETS["DDR4-3200"], **settings)


def test_a_user_order_of_address_bits_is_what_it_says() -> None:
    preset = PRESETS["HBM2-PC"]
    spelled = "row-bank-rank-column-pc-bg-column:1"
    assert address_fields(preset, spelled) == address_fields(preset, "interleaved")
    one = [simulate(preset, "stream", 1 << 18, mapping=mapping) for mapping in (spelled, "interleaved")]
    assert one[0] == one[1]


def test_addresses_beyond_the_channel_are_refused() -> None:
    preset = PRESETS["HBM2-PC"]
    with pytest.raises(HardwareError, match="lies beyond one channel"):
        serve(preset, reads(preset.capacity))
    with pytest.raises(HardwareError, match="no request"):
        serve(preset, reads())
    service = DramService(Channels(preset=preset, channels=2))
    with pytest.raises(HardwareError, match="lie beyond the 1073741824 B of 2 x HBM2-PC"):
        service.transfer(0, 64, write=False, address=1 << 30)
    with pytest.raises(HardwareError, match="at least one byte"):
        service.transfer(0, 0, write=False)
    with pytest.raises(HardwareError, match=r"channels: .*greater than or equal to 1, found 0"):
        DramService(Channels(preset=preset, channels=0))


def test_results_compare_and_print_their_keys() -> None:
    result = simulate(PRESETS["DDR5-4800"], "random", 1 << 16)
    assert replace(result) == result
    keys = {"bytes", "time_s", "bandwidth_gbps", "peak_gbps", "fraction", "activates", "row_hits", "latency_ns", "limited_by"}
    assert keys <= result.to_json().keys()
    assert result.limited_by.startswith("tFAW")
