"""Links: payload rates, credits, staging, and max-min fair sharing in exact time."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.errors import HardwareError
from hw.links import LinkSpec, ethernet, nvlink, pcie
from sim.links import Flow, fair_shares, transfer_all

GB = 10**9


def link(gbps: int, latency: int = 0, **fields: Any) -> LinkSpec:
    return LinkSpec(name="l", bandwidth=gbps * GB, latency=latency, **fields)


@pytest.mark.parametrize(("generation", "gbps"), [(3, 15.754), (4, 31.508), (5, 63.015)])
def test_pcie_rates_are_lanes_times_transfers_less_coding_and_headers(generation: int, gbps: float) -> None:
    spec = pcie(generation, 16, latency=5 * 10**8)
    assert spec.bandwidth * 1e-9 == pytest.approx(gbps, rel=1e-4)
    assert spec.rate == Fraction(spec.bandwidth * 256, 280)


def test_other_links_state_their_data_rates() -> None:
    assert nvlink(3, 12, latency=0).bandwidth == 300 * GB
    assert nvlink(4, 18, latency=0).bandwidth == 450 * GB
    assert ethernet(100, latency=0).rate == Fraction(12_500_000_000 * 1500, 1538)


def test_credits_bound_the_rate_by_the_round_trip() -> None:
    # 64 KiB per round trip of 2 us: 32.768 GB/s
    assert link(50, latency=10**9, credit_bytes=65536).rate == Fraction(65536 * 10**15, 2 * 10**9)
    assert link(10, latency=10**9, credit_bytes=65536).rate == 10 * GB
    assert link(50, latency=0, credit_bytes=65536).rate == 50 * GB


def test_an_idle_transfer_is_latency_and_bytes() -> None:
    assert link(1, latency=7).transfer_fs(1000) == 7 + 10**9
    assert link(1, latency=7).transfer_fs(0) == 0


def test_pageable_memory_exposes_one_copy_and_then_the_slower_side() -> None:
    spec = link(10, latency=5)
    # four buffers of 1 MB: copy at 20 GB/s takes 50 us each, the link 100 us each
    assert spec.staged_fs(4_000_000, copy_bandwidth=20 * GB, buffer_bytes=1_000_000) == 5 + (50 + 4 * 100) * 10**9
    # a copy at 5 GB/s takes 200 us each and decides; the last buffer is still sent after it
    assert spec.staged_fs(4_000_000, copy_bandwidth=5 * GB, buffer_bytes=1_000_000) == 5 + (4 * 200 + 100) * 10**9
    assert spec.staged_fs(4_000_000, copy_bandwidth=20 * GB, buffer_bytes=10**9) == 5 + (200 + 400) * 10**9
    assert spec.staged_fs(4_000_000, copy_bandwidth=20 * GB, buffer_bytes=1_000_000) > spec.transfer_fs(4_000_000)


def test_two_flows_share_a_link_and_the_rest_goes_to_the_longer_one() -> None:
    ends = transfer_all({"l": link(10)}, [Flow("a", ("l",), 10_000), Flow("b", ("l",), 30_000)])
    # both at 5 GB/s until a ends at 2 us; b has 20 000 B left, alone at 10 GB/s: 4 us
    assert ends == {"a": 2 * 10**9, "b": 4 * 10**9}


def test_a_flow_that_starts_later_takes_its_share_from_then_on() -> None:
    ends = transfer_all({"l": link(10)}, [Flow("a", ("l",), 20_000), Flow("b", ("l",), 10_000, start_fs=10**9)])
    # a alone for 1 us (10 000 B), then 5 GB/s each for 2 us
    assert ends == {"a": 3 * 10**9, "b": 3 * 10**9}


def test_what_one_link_leaves_over_goes_to_those_who_can_use_it() -> None:
    # a: narrow and wide; b: wide. a gets 2 of the narrow link, b the 8 that a leaves
    assert fair_shares([("narrow", "wide"), ("wide",)], {"narrow": Fraction(2), "wide": Fraction(10)}) == [2, 8]
    # two on the narrow link get 1 each
    assert fair_shares([("narrow",), ("narrow", "wide"), ("wide",)], {"narrow": Fraction(2), "wide": Fraction(10)}) == [1, 1, 9]


def test_directions_are_separate_links() -> None:
    links = {"h2d": link(10), "d2h": link(10)}
    assert transfer_all(links, [Flow("in", ("h2d",), 10_000), Flow("out", ("d2h",), 10_000)]) == {"in": 10**9, "out": 10**9}


def test_every_link_of_a_path_adds_its_latency_once() -> None:
    links = {"a": link(10, latency=300), "b": link(20, latency=50)}
    assert transfer_all(links, [Flow("f", ("a", "b"), 10_000)])["f"] == 10**9 + 350


NAMES = ("x", "y", "z")
flows = st.lists(
    st.tuples(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True), st.integers(1, 10**6), st.integers(0, 10**11)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(flows, st.tuples(*(st.integers(1, 100) for _ in NAMES)))
def test_no_link_carries_more_than_its_rate(raw: list[tuple[list[str], int, int]], gbps: tuple[int, ...]) -> None:
    links = {name: link(rate) for name, rate in zip(NAMES, gbps, strict=True)}
    named = [Flow(f"f{i}", tuple(path), size, start) for i, (path, size, start) in enumerate(raw)]
    ends = transfer_all(links, named)
    for name, spec in links.items():
        users = [flow for flow in named if name in flow.path]
        if users:
            span = max(ends[flow.name] for flow in users) - min(flow.start_fs for flow in users)
            assert sum(flow.size_bytes for flow in users) <= spec.rate * span / 10**15
    for flow in named:
        alone = max(-(-flow.size_bytes * 10**15 // int(links[name].rate)) for name in flow.path)
        assert ends[flow.name] >= flow.start_fs + alone
    assert transfer_all(links, named) == ends


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Flow("f", ("nowhere",), 1), "flow 'f': there is no link 'nowhere'; links are host"),
        (Flow("f", ("hots",), 1), "did you mean `host`"),
        (Flow("f", (), 1), "expected a path"),
        (Flow("f", ("host",), 0), "at least one byte"),
    ],
)
def test_a_flow_to_nowhere_is_refused(bad: Flow, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        transfer_all({"host": link(1)}, [bad])


def test_bad_links_are_refused() -> None:
    with pytest.raises(HardwareError, match="two flows have the same name"):
        transfer_all({"l": link(1)}, [Flow("f", ("l",), 1), Flow("f", ("l",), 1)])
    with pytest.raises(HardwareError, match="64 B of credit never let a packet of 256 B go"):
        link(1, payload_bytes=256, credit_bytes=64)
    with pytest.raises(HardwareError, match="PCIe generation 1 to 5"):
        pcie(9, 16, latency=0)
    with pytest.raises(HardwareError, match="NVLink generation 2 to 5"):
        nvlink(1, 4, latency=0)
    with pytest.raises(HardwareError, match="at least 1 Gb/s"):
        ethernet(0, latency=0)
    with pytest.raises(HardwareError, match="no negative size"):
        link(1).transfer_fs(-1)
    with pytest.raises(HardwareError, match="a staging buffer and a copy rate"):
        link(1).staged_fs(10, copy_bandwidth=0, buffer_bytes=1)
