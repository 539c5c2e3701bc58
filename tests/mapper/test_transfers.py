"""What tiles pay in main memory: rows they open, turns of the bus, and never less than their stream."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw import Device
from hw.channels import Channels
from hw.devices import load
from hw.dram import PRESETS, scattered_cost
from hw.memory import Dram, Pieces
from mapper.target import Target

NPU = load("edge-npu")
DRAM = NPU.dram


def memory(timing: str, mapping: str = "interleaved", channels: int = 4) -> Dram:
    peak = int(PRESETS[timing].peak * channels)
    return Dram(capacity="1 GiB", bandwidth=peak, timing=timing, channels=channels, mapping=mapping)


def test_rows_of_a_tile_that_share_open_dram_rows_count_together() -> None:
    channels = Channels(preset="LPDDR5-6400", channels=8)
    # rows of 8 KiB in sets of 8 channels x 4 bank groups x 2 KiB: of every 64 KiB a tile of 1 KiB per row reads 8 KiB
    assert channels.row_set == 64 * 1024
    alone = DRAM.occupied_fs(1 << 20, 0, Pieces(8192, 1 << 30))
    assert DRAM.occupied_fs(1 << 20, 0, Pieces(1024, 8192)) == alone
    # 128 pieces of 8 KiB at places of their own
    assert alone == pytest.approx(128 * scattered_cost(PRESETS["LPDDR5-6400"], 8, 8192), rel=1e-6)


@pytest.mark.parametrize("timing", PRESETS)
@pytest.mark.parametrize("mapping", ["interleaved", "row"])
@pytest.mark.parametrize("write", [False, True])
def test_no_transfer_beats_the_bound_that_prunes_mappings(timing: str, mapping: str, write: bool) -> None:
    dram = memory(timing, mapping)
    size = 1 << 22
    for piece in (1, 64, 100, 512, 4096, 65536, 1 << 20, 1 << 22):
        for pitch in (piece, 2 * piece, 1 << 24):
            cost = dram.occupied_fs(0 if write else size, size if write else 0, Pieces(piece, pitch))
            assert dram.least_fs(size) <= cost
            assert cost >= Fraction(size * 10**15, dram.bandwidth)


@pytest.mark.parametrize("timing", PRESETS)
def test_short_pieces_are_not_faster_than_the_stream_when_interleaved(timing: str) -> None:
    dram = memory(timing)
    stream = dram.occupied_fs(1 << 20)
    assert stream < dram.occupied_fs(1 << 20, 0, Pieces(64, 1 << 24))
    assert stream == dram.occupied_fs(1 << 20, 0, Pieces(4096, 4096))  # whole rows lie side by side


@given(st.sampled_from([64, 512, 4096, 30_000]), st.sampled_from([4096, 8192, 22_016]), st.integers(1, 2**24))
def test_more_bandwidth_never_makes_pieces_slower(piece: int, pitch: int, size: int) -> None:
    times = [
        Target(NPU.with_settings({"memories.dram.bandwidth": rate})).transfer("t", "weights", size, size, Pieces(piece, pitch)).fs
        for rate in ("1 GB/s", "102.4 GB/s", "1 TB/s", "100 TB/s")
    ]
    assert times == sorted(times, reverse=True)


def test_a_write_back_turns_the_bus_around_and_back() -> None:
    target, p = Target(NPU), PRESETS["LPDDR5-6400"]
    # last read beat to first write beat, and last write beat to first read beat: tRTW + tCWL - tCL - tBL and tWTR_S + tCL clocks
    turn = (p.n_rtw + p.n_cwl - p.n_cl - p.n_bl + p.n_wtr_s + p.n_cl) * p.clock_fs
    assert target.transfer("s", "outputs", 0, 4096).fs - DRAM.occupied_fs(0, 4096) == turn == DRAM.turn_fs
    assert target.transfer("s", "outputs", 0, 4096, turn=False).fs == DRAM.occupied_fs(0, 4096)
    assert target.transfer("l", "weights", 4096).fs == DRAM.occupied_fs(4096)


@pytest.mark.parametrize("name", ["systolic-32", "systolic-128"])
def test_a_memory_without_a_timing_preset_costs_its_bytes_alone(name: str) -> None:
    device: Device = load(name)
    assert device.dram.turn_fs == 0
    assert device.dram.occupied_fs(4096, 64, Pieces(64, 8192)) == device.dram.occupied_fs(4096, 64)
