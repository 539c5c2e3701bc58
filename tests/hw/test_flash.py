"""Flash: the measured points come back, queue depth and latency bound the rest, and what a source lacks is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from hw.errors import HardwareError
from hw.flash import FLASH, Flash, FlashPoint, flash

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("name", "size", "options", "gbps"),
    [
        ("m1-max-ssd", 4 * KIB, {}, 1.25),
        ("m1-max-ssd", 8 * KIB, {}, 1.25),
        ("m1-max-ssd", 32 * KIB, {}, 2.25),
        ("m1-max-ssd", MIB, {"sequential": True}, 6.1),
        ("ufs-4.0", 4 * KIB, {}, 0.45),
        ("ufs-4.0", 4 * KIB, {"span_bytes": 512 * MIB}, 0.85),
        ("ufs-4.0", 4 * KIB, {"span_bytes": 128 * MIB}, 1.0),
        ("ufs-4.0", 512 * KIB, {}, 3.5),
        ("ufs-4.0", 512 * KIB, {"sequential": True}, 4.0),
    ],
)
def test_measured_points_come_back_within_five_percent(name: str, size: int, options: dict[str, Any], gbps: float) -> None:
    assert float(flash(name).rate(size, **options)) * 1e-9 == pytest.approx(gbps, rel=0.05)


@pytest.mark.parametrize("name", FLASH)
def test_larger_requests_and_deeper_queues_are_never_slower(name: str) -> None:
    device = flash(name)
    by_size = [device.rate(512 << k) for k in range(14)]
    assert by_size == sorted(by_size)
    by_depth = [device.rate(4 * KIB, queue_depth=d) for d in (1, 2, 4, 8, 16, 32, 64)]
    assert by_depth == sorted(by_depth)
    assert by_size[-1] <= device.sequential


def test_one_outstanding_request_pays_its_latency_each_time() -> None:
    device = flash("m1-max-ssd")
    size = 4 * KIB
    single = device.first_byte + Fraction(size * 10**15, device.sequential)
    assert device.rate(size, queue_depth=1) == Fraction(size * 10**15) / single
    # 32 of them saturate: the latency was derived from that
    assert float(device.rate(size, queue_depth=1) * 32) == pytest.approx(1.25e9, rel=1e-6)


def test_between_two_points_the_rate_is_a_power_of_the_size() -> None:
    device = flash("m1-max-ssd")
    middle = device.rate(16 * KIB)  # halfway in the logarithm from 8 to 32 KiB
    assert float(middle) == pytest.approx((1.25e9 * 2.25e9) ** 0.5, rel=1e-6)
    assert float(device.rate(2 * KIB)) == pytest.approx(0.5 * 1.25e9)  # the same requests per second


def test_a_transfer_is_latency_and_bytes_over_rate() -> None:
    device = flash("ufs-4.0")
    total = 1 << 30
    assert device.transfer_fs(total, 512 * KIB) == device.first_byte + -(-total * 10**15 // int(device.rate(512 * KIB)))
    assert device.transfer_fs(0, 4 * KIB) == 0


def test_writes_are_refused_where_the_source_has_none_and_served_where_it_does() -> None:
    with pytest.raises(HardwareError, match="m1-max-ssd: writes are not modelled, its source gives no rate"):
        flash("m1-max-ssd").rate(4 * KIB, write=True)
    both = Flash(
        name="both",
        source="test",
        reads=(FlashPoint(size=4 * KIB, rate=1_000_000_000),),
        writes=(FlashPoint(size=4 * KIB, rate=200_000_000),),
        sequential=2_000_000_000,
        sequential_write=1_000_000_000,
        first_byte=50_000_000_000,
        queue_depth=128,
    )
    assert both.rate(4 * KIB, write=True) == 200_000_000
    assert both.rate(4 * KIB) == 1_000_000_000


def test_bad_devices_and_requests_are_refused() -> None:
    with pytest.raises(HardwareError, match=r"unknown flash 'ufs-4', expected one of .*did you mean `ufs-4.0`"):
        flash("ufs-4")
    point = FlashPoint(size=4 * KIB, rate=3_000_000_000)
    with pytest.raises(HardwareError, match="is faster than the linear rate of 2000000000 B/s"):
        Flash(name="x", reads=(point,), sequential=2_000_000_000, first_byte=50_000_000_000, queue_depth=1)
    with pytest.raises(HardwareError, match="reads: expected at least one measured point"):
        Flash(name="x", reads=(), sequential=2_000_000_000, first_byte=50_000_000_000, queue_depth=1)
    for size, depth in ((0, 1), (4096, 0)):
        with pytest.raises(HardwareError, match="a request and a queue depth of at least 1"):
            flash("ufs-4.0").rate(size, queue_depth=depth)
    with pytest.raises(HardwareError, match="no negative size"):
        flash("ufs-4.0").transfer_fs(-1, 4096)
