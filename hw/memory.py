"""Memories as a device describes them: main memory, caches and scratchpads. Bank state and queues belong to the simulator."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema, model_validator

from hw.errors import HardwareError, nearest
from hw.part import Part
from hw.quantity import FS_PER_S, Bandwidth, Capacity, Count, Duration, Energy, transfer_fs

MEMORIES: dict[str, type[Memory]] = {}
"""Every memory class by its kind."""


def _ratio(value: object) -> Fraction:
    try:
        ratio = Fraction(str(value))
    except (ValueError, ZeroDivisionError) as error:
        raise HardwareError(f"expected a ratio such as 260/3900 or 0.05, not {value!r}") from error
    if not 0 <= ratio < 1:
        raise HardwareError(f"expected a ratio from 0 to below 1, not {value!r}")
    return ratio


def _share(value: object) -> Fraction:
    try:
        share = Fraction(str(value))
    except (ValueError, ZeroDivisionError) as error:
        raise HardwareError(f"expected a share such as 0.9 or 9/10, not {value!r}") from error
    if not 0 < share <= 1:
        raise HardwareError(f"expected a share above 0 and up to 1, not {value!r}")
    return share


_SPELLING = (PlainSerializer(str, return_type=str), WithJsonSchema({"type": ["string", "number"]}))
Ratio = Annotated[Fraction, BeforeValidator(_ratio), *_SPELLING]
Share = Annotated[Fraction, BeforeValidator(_share), *_SPELLING]


class Memory(Part):
    """`count` instances of `capacity` each; `bandwidth` is the sum over all instances, reads and writes together.

    `energy` is the energy of moving one bit to or from it; None means not modelled.
    """

    kind: ClassVar[str] = ""

    capacity: Capacity
    bandwidth: Bandwidth
    latency: Duration = 0
    count: Count = 1
    energy: Energy | None = None

    def __init_subclass__(cls, kind: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind = kind
            MEMORIES[kind] = cls

    @property
    def model(self) -> str:
        """What its transfers are charged for, in a few words."""
        return "stated bandwidth"

    @property
    def total(self) -> int:
        """Bytes over all instances."""
        return self.capacity * self.count

    def occupied_fs(self, read: Fraction | int, written: Fraction | int = 0) -> int:
        """Femtoseconds that reading and writing so many bytes occupies the memory, latency excluded."""
        return transfer_fs(read + written, self.bandwidth)

    def least_fs(self, size: Fraction | int) -> int:
        """Femtoseconds that moving `size` bytes occupies it at least, whatever part of them is written."""
        return self.occupied_fs(size)


@lru_cache
def _stream_fractions(timing: str, mapping: str) -> tuple[Fraction, Fraction]:
    """Fractions of the peak that long streams of reads and of writes reach with a timing preset, refresh included."""
    from hw.dram import preset, stream_fraction

    known = preset(timing)
    return stream_fraction(known, mapping), stream_fraction(known, mapping, write=True)


class Dram(Memory, kind="dram"):
    """Main memory behind a shared interface.

    `timing` names a command-level preset (`dovetail memory`), of which the memory has `channels`: streams, interleaved over all
    of them, reach the fraction of `bandwidth` that rows, bank groups and refresh leave with the address `mapping`, for reads and
    for writes. The bandwidth itself is what is stated here, so that a variant may change it alone. Without it `refresh` is the
    fraction of time lost to refresh (tRFC / tREFI of the standard named in `source`).
    `efficiency` is the share of that which kernels sustain, and `ramp` the time that a kernel loses until it does.
    `cold_fill` `excluded` leaves the first fill and the last write-back of an operator, which no computation can hide, out of
    the time, as published array models do; `sharing` `per_operand` gives each operand of a product its own interface of the
    full bandwidth.
    """

    standard: str = ""
    timing: str = ""
    channels: Count | None = None
    mapping: Literal["interleaved", "row"] = "interleaved"
    refresh: Ratio = Fraction(0)
    efficiency: Share = Fraction(1)
    ramp: Duration = 0
    cold_fill: Literal["counted", "excluded"] = "counted"
    sharing: Literal["shared", "per_operand"] = "shared"

    @model_validator(mode="after")
    def _timed(self) -> Dram:
        if not self.timing:
            if self.channels is not None or self.mapping != "interleaved":
                raise HardwareError("channels and mapping belong to a timing preset: name it with `timing`")
            return self
        from hw.dram import preset

        preset(self.timing)
        if self.refresh:
            raise HardwareError(f"refresh: is part of the timing preset {self.timing}; leave it out")
        return self

    @property
    def model(self) -> str:
        if self.timing:
            return f"{f'{self.channels} x ' if self.channels else ''}{self.timing}, {self.mapping}"
        return "stated bandwidth less refresh" if self.refresh else super().model

    def _fractions(self) -> tuple[Fraction, Fraction]:
        """Fractions of the bandwidth that reads and writes reach."""
        if self.timing:
            return _stream_fractions(self.timing, self.mapping)
        return 1 - self.refresh, 1 - self.refresh

    def occupied_fs(self, read: Fraction | int, written: Fraction | int = 0) -> int:
        reads, writes = (fraction * self.efficiency for fraction in self._fractions())
        return _scaled_fs(read, reads, self.bandwidth) + _scaled_fs(written, writes, self.bandwidth)

    def least_fs(self, size: Fraction | int) -> int:
        return _scaled_fs(size, max(self._fractions()), self.bandwidth)


def _scaled_fs(size: Fraction | int, fraction: Fraction, bandwidth: int) -> int:
    """Femtoseconds for `size` bytes at a fraction of a bandwidth, rounded up."""
    return -(-size.numerator * fraction.denominator * FS_PER_S // (size.denominator * fraction.numerator * bandwidth))


class Hbm(Dram, kind="hbm"):
    """Stacked main memory."""


class Cache(Memory, kind="cache"):
    """A cache in front of the main memory, shared by all units.

    `efficiency` is the share of its bandwidth that kernels reach. `reuse` is the share of its capacity within which what was
    touched is found again: with it, something last touched d bytes ago is found with probability 1 - d / (reuse x capacity), as
    sets and slices fill up unevenly; without it, least-recently-used replacement is perfect.
    """

    efficiency: Share = Fraction(1)
    reuse: Share | None = None

    @property
    def window(self) -> int:
        """Bytes that may be touched between two uses of what is still found."""
        return int(self.total * self.reuse) if self.reuse is not None else self.total

    def found(self, distance: int) -> Fraction:
        """Share that is still there of something last touched so many bytes ago, itself included.

        >>> Cache(capacity=1000, bandwidth=1, reuse="0.5").found(100)
        Fraction(4, 5)
        """
        if self.reuse is None:
            return Fraction(distance <= self.total)
        return max(Fraction(0), 1 - Fraction(distance, max(1, self.window)))

    def occupied_fs(self, read: Fraction | int, written: Fraction | int = 0) -> int:
        return _scaled_fs(read + written, self.efficiency, self.bandwidth)


class Scratchpad(Memory, kind="scratchpad"):
    """Software-managed memory. `holds` says which operand of a product it serves: `activations`, `weights`, `outputs` or `any`."""

    holds: Literal["activations", "weights", "outputs", "any"] = "any"


def memory_class(kind: object) -> type[Memory]:
    """The class of a memory kind. Raises `HardwareError` with the nearest kind."""
    if not isinstance(kind, str) or kind not in MEMORIES:
        hint = nearest(kind, MEMORIES) if isinstance(kind, str) else ""
        raise HardwareError(f"unknown memory kind {kind!r}, expected one of {', '.join(sorted(MEMORIES))}{hint}")
    return MEMORIES[kind]
