"""Links between devices as their specifications describe them: payload rate of one direction, latency, credits."""

from __future__ import annotations

from fractions import Fraction

from pydantic import Field, model_validator

from hw.errors import HardwareError
from hw.part import Part
from hw.quantity import Bandwidth, Capacity, Duration


class LinkSpec(Part):
    """One direction of a link: `bandwidth` on the wire, packets of `payload_bytes` behind `header_bytes`, `latency` one way.

    `credit_bytes` is the receiver's buffer: the sender stops when so many payload bytes are not yet acknowledged, a round
    trip after they left; None means that credits never run out. Full duplex links are two of these.
    """

    name: str
    bandwidth: Bandwidth
    latency: Duration
    payload_bytes: int = Field(default=1, ge=1)
    header_bytes: int = Field(default=0, ge=0)
    credit_bytes: Capacity | None = None

    @model_validator(mode="after")
    def _consistent(self) -> LinkSpec:
        if self.credit_bytes is not None and self.credit_bytes < self.payload_bytes:
            raise HardwareError(f"credit_bytes: {self.credit_bytes} B of credit never let a packet of {self.payload_bytes} B go")
        return self

    @property
    def rate(self) -> Fraction:
        """Payload bytes per second: the wire less headers, and no more than the credits allow per round trip."""
        wire = Fraction(self.bandwidth * self.payload_bytes, self.payload_bytes + self.header_bytes)
        if self.credit_bytes is None or self.latency == 0:
            return wire
        return min(wire, Fraction(self.credit_bytes * 10**15, 2 * self.latency))

    def transfer_fs(self, size_bytes: int) -> int:
        """Femtoseconds from the first byte sent to the last one received on an idle link. Raises `HardwareError` for a negative size."""
        if size_bytes < 0:
            raise HardwareError(f"{self.name}: expected no negative size, found {size_bytes} B")
        return self.latency + -(-size_bytes * 10**15 * self.rate.denominator // self.rate.numerator) if size_bytes else 0

    def staged_fs(self, size_bytes: int, *, copy_bandwidth: int, buffer_bytes: int) -> int:
        """Femtoseconds for pageable host memory: copied by the host into one of two pinned buffers while the other is sent.

        `copy_bandwidth` in bytes per second. The first buffer's copy is exposed, then the slower of copy and link decides.
        """
        if buffer_bytes < 1 or copy_bandwidth < 1:
            raise HardwareError(
                f"{self.name}: expected a staging buffer and a copy rate of at least 1, found {buffer_bytes} and {copy_bandwidth}"
            )
        if size_bytes <= 0:
            return self.transfer_fs(size_bytes)
        slower = min(self.rate, Fraction(copy_bandwidth))
        first, last = min(buffer_bytes, size_bytes), (size_bytes - 1) % buffer_bytes + 1
        copies_bind = copy_bandwidth < self.rate
        ends = Fraction(last) / self.rate if copies_bind else Fraction(first, copy_bandwidth)
        return self.latency + int(-(-(size_bytes / slower + ends) * 10**15 // 1))


def pcie(generation: int, lanes: int, *, latency: int, credit_bytes: int | None = None) -> LinkSpec:
    """A PCI Express direction: 2.5 and 5 GT/s with 8b/10b, 8, 16 and 32 GT/s with 128b/130b coding; 256 byte payloads.

    24 bytes go with each: framing 4, four-word header 16, link CRC 4 (PCI Express Base Specification 4.0, chapters 2 to 4).
    The specification states no latency: give that of the host, in femtoseconds. Raises `HardwareError` for an unknown generation or width.
    """
    rates = {1: (2_500, Fraction(8, 10)), 2: (5_000, Fraction(8, 10))} | {g: (4_000 << (g - 2), Fraction(128, 130)) for g in (3, 4, 5)}
    if generation not in rates or lanes not in (1, 2, 4, 8, 12, 16, 32):
        raise HardwareError(f"expected PCIe generation 1 to 5 with 1, 2, 4, 8, 12, 16 or 32 lanes, found generation {generation} x{lanes}")
    mtps, coding = rates[generation]
    wire = int(Fraction(mtps * 10**6 * lanes, 8) * coding)
    return LinkSpec(
        name=f"pcie{generation}-x{lanes}",
        source="PCI Express Base Specification",
        bandwidth=wire,
        latency=latency,
        payload_bytes=256,
        header_bytes=24,
        credit_bytes=credit_bytes,
    )


def nvlink(generation: int, links: int, *, latency: int) -> LinkSpec:
    """One direction of an NVLink bundle, data rate as NVIDIA's data sheets state it (25 GB/s per link from V100 to H100, 50 on B200)."""
    per_link = {2: 25, 3: 25, 4: 25, 5: 50}
    if generation not in per_link or links < 1:
        raise HardwareError(f"expected NVLink generation 2 to 5 with at least one link, found generation {generation} with {links}")
    return LinkSpec(
        name=f"nvlink{generation}-x{links}",
        source="NVIDIA V100, A100, H100 and Blackwell data sheets",
        bandwidth=per_link[generation] * links * 10**9,
        latency=latency,
    )


def ethernet(gbps: int, *, latency: int, payload_bytes: int = 1500) -> LinkSpec:
    """One direction of Ethernet at `gbps` (or InfiniBand with its own payload): 38 bytes of preamble, header, CRC and gap per frame."""
    if gbps < 1:
        raise HardwareError(f"expected at least 1 Gb/s, found {gbps}")
    return LinkSpec(
        name=f"ethernet-{gbps}g",
        source="IEEE 802.3",
        bandwidth=gbps * 125_000_000,
        latency=latency,
        payload_bytes=payload_bytes,
        header_bytes=38,
    )
