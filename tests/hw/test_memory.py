"""Memories: the time their bytes take, and what a wrong description of one is told."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw import Cache, Dram, HardwareError, Hbm, Memory, Scratchpad
from hw.dram import preset, stream_fraction
from hw.memory import MEMORIES, memory_class


def dram(**fields):
    return Dram(**{"capacity": "16 GiB", "bandwidth": "16 GB/s", **fields})


def test_bytes_at_the_bandwidth():
    assert dram().occupied_fs(16) == 10**6  # 16 B at 16 B/ns
    assert dram().occupied_fs(0) == 0
    assert Scratchpad(capacity="1 KiB", bandwidth="32 GB/s").occupied_fs(Fraction(1, 2)) == 15_625  # half a byte of 31.25 ps


def test_refresh_takes_its_share_of_the_time():
    # a quarter of the time lost: the same bytes take 4/3 as long
    assert dram(refresh="1/4").occupied_fs(48) == 3 * 10**6 * 4 // 3
    assert dram(refresh=0.25) == dram(refresh="0.25") == dram(refresh="1/4")


@given(st.integers(1, 10**12), st.fractions(0, "9/10"), st.integers(1, 10**13))
def test_refresh_never_makes_a_transfer_faster(size, refresh, bandwidth):
    calm, busy = dram(bandwidth=bandwidth), dram(bandwidth=bandwidth, refresh=refresh)
    assert calm.occupied_fs(size) <= busy.occupied_fs(size) <= calm.occupied_fs(size) / (1 - refresh) + 1


@given(st.integers(1, 10**12), st.integers(1, 10**13), st.integers(1, 10**13))
def test_more_bandwidth_is_never_slower(size, one, more):
    assert dram(bandwidth=one + more).occupied_fs(size) <= dram(bandwidth=one).occupied_fs(size)


TIMINGS = ["HBM2E-PC", "HBM3-5.2-PC", "LPDDR5-6400", "DDR4-3200"]


@pytest.mark.parametrize("timing", TIMINGS)
def test_a_timing_preset_leaves_streams_the_fraction_of_the_peak_that_its_commands_allow(timing):
    memory = dram(timing=timing, channels=4)
    for write in (False, True):
        fraction = stream_fraction(preset(timing), "interleaved", write=write)
        assert 0 < fraction <= 1
        moved = memory.occupied_fs(0, 10**9) if write else memory.occupied_fs(10**9)
        assert moved == ceil(Fraction(10**9 * 10**15, 16 * 10**9) / fraction)


@given(st.sampled_from(TIMINGS), st.integers(0, 10**12), st.integers(0, 10**12))
def test_no_mix_of_reads_and_writes_is_faster_than_the_least(timing, read, written):
    for memory in (dram(timing=timing), dram(refresh="1/4"), dram()):
        assert memory.occupied_fs(read, written) >= memory.least_fs(read + written) >= 0
        assert memory.occupied_fs(read, written) == memory.occupied_fs(read) + memory.occupied_fs(0, written)


def test_a_variant_may_change_the_bandwidth_of_a_timed_memory_alone():
    timed = dram(timing="HBM2E-PC", channels=80, bandwidth="2039 GB/s")
    half = Dram(**{**timed.model_dump(), "bandwidth": timed.bandwidth // 2})
    assert 2 * timed.occupied_fs(10**12) - 2 <= half.occupied_fs(10**12) <= 2 * timed.occupied_fs(10**12) + 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timing": "HBM2E"}, "unknown .*HBM2E"),
        ({"timing": "HBM2E-PC", "refresh": "1/4"}, "refresh: is part of the timing preset HBM2E-PC; leave it out"),
        ({"channels": 3}, "channels and mapping belong to a timing preset: name it with `timing`"),
        ({"mapping": "row"}, "channels and mapping belong to a timing preset: name it with `timing`"),
        ({"timing": "HBM2E-PC", "channels": 0}, "channels: input should be greater than or equal to 1, found 0"),
    ],
)
def test_a_timing_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(HardwareError, match=message):
        dram(**fields)


def test_the_total_is_over_all_instances():
    assert Scratchpad(capacity="164 KiB", bandwidth="1 TB/s", count=108).total == 108 * 164 * 1024


@pytest.mark.parametrize(("kind", "cls"), [("dram", Dram), ("hbm", Hbm), ("cache", Cache), ("scratchpad", Scratchpad)])
def test_every_kind_names_its_class(kind, cls):
    assert memory_class(kind) is cls
    assert MEMORIES[kind] is cls
    assert cls.kind == kind


def test_stacked_memory_is_main_memory():
    assert isinstance(Hbm(capacity="80 GiB", bandwidth="2 TB/s"), Dram)


@pytest.mark.parametrize(
    ("kind", "hint"), [("drams", "; did you mean `dram`?"), ("scratchpd", "; did you mean `scratchpad`?"), ("xyz", ""), (None, ""), (3, "")]
)
def test_an_unknown_kind_is_told_the_nearest(kind, hint):
    with pytest.raises(HardwareError) as caught:
        memory_class(kind)
    assert str(caught.value) == f"unknown memory kind {kind!r}, expected one of {', '.join(sorted(MEMORIES))}{hint}"


@pytest.mark.parametrize("ratio", ["2", "-1/4", "1", 1.0, "1/0", "often", None, "nan"])
def test_a_refresh_that_is_no_fraction_of_the_time_is_refused(ratio):
    with pytest.raises(HardwareError, match=r"^refresh: expected a ratio "):
        dram(refresh=ratio)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"capacity": "64 KB"}, "capacity: expected a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, not '64 KB'"),
        ({"capacity": 0}, "capacity: expected at least 1 B, not 0"),
        (
            {"bandwidth": "1 GHz"},
            "bandwidth: expected a number with B/s, KiB/s, MiB/s, GiB/s, TiB/s, kB/s, MB/s, GB/s or TB/s, not '1 GHz'",
        ),
        ({"latency": "-1 ns"}, "latency: expected at least 0 fs, not '-1 ns'"),
        ({"count": 0}, "count: input should be greater than or equal to 1, found 0"),
        ({"sharing": "private"}, "sharing: input should be 'shared' or 'per_operand', found 'private'"),
        ({"cold_fill": "ignored"}, "cold_fill: input should be 'counted' or 'excluded', found 'ignored'"),
        ({"bandwith": "1 GB/s"}, "bandwith: unknown field; did you mean `bandwidth`?"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(fields, message):
    with pytest.raises(HardwareError) as caught:
        dram(**fields)
    assert str(caught.value) == message


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(HardwareError) as caught:
        Memory(capacity="1 KB", latency="soon")
    assert [path for path, _ in caught.value.items] == ["capacity", "bandwidth", "latency"]
    assert caught.value.items[1] == ("bandwidth", "missing field")


def test_a_memory_does_not_change():
    memory = dram()
    with pytest.raises(ValueError, match="frozen"):
        memory.bandwidth = 1
