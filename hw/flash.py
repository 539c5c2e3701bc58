"""Flash storage as its measurements describe it: throughput by request size and queue depth, and what a source leaves open."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import exp, log

from pydantic import model_validator

from hw.errors import HardwareError, nearest
from hw.part import Part
from hw.quantity import Bandwidth, Capacity, Duration

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class FlashPoint(Part):
    """Random requests of `size` reach `rate` with enough of them outstanding. `span`: only within so many bytes of storage."""

    size: Capacity
    rate: Bandwidth
    span: Capacity | None = None


class Flash(Part):
    """An SSD or UFS device.

    `reads` (and `writes`, if the source has any) are measured points of random requests; `sequential` is the rate of long
    linear reads. `queue_depth` is how many requests were outstanding when the points were measured, `first_byte` the time
    a single request takes before its data flows.
    Raises `HardwareError` for no point, or a point faster than the linear rate.
    """

    name: str
    reads: tuple[FlashPoint, ...]
    writes: tuple[FlashPoint, ...] = ()
    sequential: Bandwidth
    sequential_write: Bandwidth | None = None
    first_byte: Duration
    queue_depth: int

    @model_validator(mode="after")
    def _consistent(self) -> Flash:
        wrong = [] if self.reads else [("reads", "expected at least one measured point")]
        for field, points, limit in (("reads", self.reads, self.sequential), ("writes", self.writes, self.sequential_write)):
            for point in points:
                if limit is not None and point.rate > limit:
                    wrong.append((field, f"{point.rate} B/s at {point.size} B is faster than the linear rate of {limit} B/s"))
        if self.queue_depth < 1:
            wrong.append(("queue_depth", f"expected at least 1, found {self.queue_depth}"))
        if wrong:
            raise HardwareError(items=wrong)
        return self

    def rate(
        self,
        size_bytes: int,
        *,
        queue_depth: int | None = None,
        write: bool = False,
        sequential: bool = False,
        span_bytes: int | None = None,
    ) -> Fraction:
        """Bytes per second of requests of `size_bytes`.

        Between two points the rate is a power of the size (a straight line in the logarithms); beyond the largest it stays,
        below the smallest requests per second stay. At most `queue_depth` requests are outstanding (by default as many as
        measured): each takes `first_byte` and its share of the linear rate. `span_bytes` picks points measured within that
        much storage. Raises `HardwareError` when the source says nothing of writes, or for sizes and depths below one.
        """
        depth = self.queue_depth if queue_depth is None else queue_depth
        if size_bytes < 1 or depth < 1:
            raise HardwareError(f"{self.name}: expected a request and a queue depth of at least 1, found {size_bytes} B and {depth}")
        points, line = (self.writes, self.sequential_write) if write else (self.reads, self.sequential)
        if line is None or (write and not points and not sequential):
            raise HardwareError(f"{self.name}: writes are not modelled, its source gives no rate; state `writes` and `sequential_write`")
        best = Fraction(line) if sequential else self._interpolated(points, size_bytes, span_bytes)
        single = self.first_byte + Fraction(size_bytes * 10**15, line)
        if sequential:  # read-ahead keeps the device busy whatever the size
            return best
        return min(best, Fraction(depth * size_bytes * 10**15) / single)

    def _interpolated(self, points: tuple[FlashPoint, ...], size: int, span: int | None) -> Fraction:
        within = {p.size: p.rate for p in points if p.span is None}
        if span is not None:
            near = sorted((p for p in points if p.span is not None and p.span >= span), key=lambda p: -(p.span or 0))
            within |= {p.size: p.rate for p in near}  # the tightest span that still covers the request wins
        known = sorted(within.items())
        if size <= known[0][0]:
            return Fraction(known[0][1] * size, known[0][0])
        if size >= known[-1][0]:
            return Fraction(known[-1][1])
        for (low, slow), (high, fast) in pairwise(known):
            if low <= size <= high:
                at = log(size / low) / log(high / low)
                return Fraction(round(exp(log(slow) + at * (log(fast) - log(slow)))))
        raise AssertionError("sizes are sorted")

    def transfer_fs(
        self,
        total_bytes: int,
        size_bytes: int,
        *,
        queue_depth: int | None = None,
        write: bool = False,
        sequential: bool = False,
        span_bytes: int | None = None,
    ) -> int:
        """Femtoseconds for `total_bytes` in requests of `size_bytes`, the first byte's latency included once."""
        if total_bytes < 0:
            raise HardwareError(f"{self.name}: expected no negative size, found {total_bytes} B")
        if total_bytes == 0:
            return 0
        rate = self.rate(size_bytes, queue_depth=queue_depth, write=write, sequential=sequential, span_bytes=span_bytes)
        return self.first_byte + -(-total_bytes * 10**15 * rate.denominator // rate.numerator)


def _first_byte(depth: int, size: int, rate: int, line: int) -> int:
    """Latency at which `depth` outstanding requests of `size` just reach `rate`: an upper bound derived from the measurement."""
    return depth * size * 10**15 // rate - size * 10**15 // line


FLASH: dict[str, Flash] = {
    flash.name: flash
    for flash in (
        Flash(
            name="m1-max-ssd",
            source="Alizadeh et al., LLM in a flash, 2023: 1 TB SSD of an M1 Max, 32 threads; first byte derived from those",
            reads=(
                FlashPoint(size=4 * KIB, rate=1_250_000_000),
                FlashPoint(size=8 * KIB, rate=1_250_000_000),
                FlashPoint(size=32 * KIB, rate=2_250_000_000),
                FlashPoint(size=1 * GIB, rate=6_100_000_000),
            ),
            sequential=6_100_000_000,
            first_byte=_first_byte(32, 4096, 1_250_000_000, 6_100_000_000),
            queue_depth=32,
        ),
        Flash(
            name="ufs-4.0",
            source="Xue et al., PowerInfer-2, 2024: UFS 4.0 of a phone read from a 3.3 GHz core, one command queue of 32; "
            "first byte derived from that queue at 4 KiB",
            reads=(
                FlashPoint(size=4 * KIB, rate=450_000_000),
                FlashPoint(size=4 * KIB, rate=850_000_000, span=512 * MIB),
                FlashPoint(size=4 * KIB, rate=1_000_000_000, span=128 * MIB),
                FlashPoint(size=512 * KIB, rate=3_500_000_000),
            ),
            sequential=4_000_000_000,
            first_byte=_first_byte(32, 4096, 1_000_000_000, 4_000_000_000),
            queue_depth=32,
        ),
    )
}
"""Storage devices by name, one source each; neither source gives writes."""


def flash(name: str) -> Flash:
    """The storage device called `name`. Raises `HardwareError` with the nearest name."""
    if name not in FLASH:
        raise HardwareError(f"unknown flash {name!r}, expected one of {', '.join(FLASH)}{nearest(name, FLASH)}")
    return FLASH[name]
