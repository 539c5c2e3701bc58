"""Memories as a device describes them: main memory, caches and scratchpads. Bank state and queues belong to the simulator."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema, model_validator

from hw.errors import HardwareError, nearest
from hw.part import Part
from hw.quantity import FS_PER_S, Bandwidth, Capacity, Count, Duration, Energy, transfer_fs

if TYPE_CHECKING:
    from hw.channels import Channels

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

    @property
    def turn_fs(self) -> int:
        """Femtoseconds that the memory idles when it turns from reads to writes and back once."""
        return 0

    def occupied_fs(self, read: Fraction | int, written: Fraction | int = 0, pieces: Pieces | None = None) -> int:
        """Femtoseconds that reading and writing so many bytes occupies the memory, latency excluded. `pieces`: how they lie there,
        if not in one run."""
        return transfer_fs(read + written, self.bandwidth)

    def least_fs(self, size: Fraction | int) -> int:
        """Femtoseconds that moving `size` bytes occupies it at least, whatever part of them is written."""
        return self.occupied_fs(size)


class Pieces(NamedTuple):
    """Contiguous pieces of `size` bytes, each `pitch` bytes behind the one before, as the rows of a tile of a matrix lie."""

    size: Fraction | int
    pitch: Fraction | int


@lru_cache
def _stream_fractions(timing: str, mapping: str) -> tuple[Fraction, Fraction]:
    """Fractions of the peak that long streams of reads and of writes reach with a timing preset, refresh included."""
    from hw.dram import preset, stream_fraction

    known = preset(timing)
    return stream_fraction(known, mapping), stream_fraction(known, mapping, write=True)


@lru_cache
def _best_fraction(timing: str, mapping: str) -> Fraction:
    """The largest fraction of the peak that streams or pieces reach."""
    from hw.dram import SCATTERED

    return max(*_stream_fractions(timing, mapping), *(Fraction(str(rate)) for rate in SCATTERED[timing][mapping]))


@lru_cache
def _channels(timing: str, channels: int | None, mapping: str, bandwidth: int) -> Channels:
    from hw.channels import Channels
    from hw.dram import preset

    known = preset(timing)
    return Channels(preset=known, channels=channels or max(1, round(bandwidth / known.peak)), mapping=mapping)


@lru_cache(maxsize=4096)
def _pieces_fraction(timing: str, channels: int, mapping: str, size: int, write: bool) -> Fraction:
    """The fraction of the peak that pieces of `size` bytes at places of their own reach, refresh included."""
    from hw.dram import preset, scattered_cost

    known = preset(timing)
    return Fraction(size * FS_PER_S) / (known.peak * channels * scattered_cost(known, channels, size, mapping, write=write))


class Dram(Memory, kind="dram"):
    """Main memory behind a shared interface.

    `timing` names a command-level preset (`dovetail memory`), of which the memory has `channels` (as many as its bandwidth needs,
    if not stated): streams, interleaved over all of them, reach the fraction of `bandwidth` that rows, bank groups and refresh leave
    with the address `mapping`, for reads and for writes; pieces that share no open rows reach less, and turning the bus around
    takes its time. The bandwidth itself is what is stated here, so that a variant may change it alone. Without it `refresh` is the
    fraction of time lost to refresh (tRFC / tREFI of the standard named in `source`).
    `ecc` is the share of all transfers that are check bits stored beside the data (inline ECC of GDDR memories).
    `efficiency` is the share of that which kernels with few loads on their way sustain (products, attention), and `ramp` the time
    that a kernel loses until it does.
    `cold_fill` `excluded` leaves the first fill and the last write-back of an operator, which no computation can hide, out of
    the time, as published array models do; `sharing` `per_operand` gives each operand of a product its own interface of the
    full bandwidth.
    """

    standard: str = ""
    timing: str = ""
    channels: Count | None = None
    mapping: Literal["interleaved", "row"] = "interleaved"
    refresh: Ratio = Fraction(0)
    ecc: Ratio = Fraction(0)
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

    @property
    def service(self) -> Channels | None:
        """Its channels, for a memory with a timing preset."""
        return _channels(self.timing, self.channels, self.mapping, self.bandwidth) if self.timing else None

    def fraction(self, pieces: Pieces | None = None, *, write: bool = False) -> Fraction:
        """The share of its bandwidth that transfers reach: long streams, or `pieces`.

        Pieces whose pitch is shorter than the rows that are open at a time share these rows: what is read of one set of rows
        counts as one piece at a place of its own.
        """
        data = (1 - self.ecc) * self.efficiency
        if not self.timing:
            return (1 - self.refresh) * data
        stream = _stream_fractions(self.timing, self.mapping)[write]
        service = self.service
        if pieces is None or pieces.size >= pieces.pitch or service is None:
            return stream * data
        run = ceil(pieces.size * max(1, service.row_set // pieces.pitch))
        found = _pieces_fraction(self.timing, service.channels, self.mapping, max(1, run), write)
        return min(found, stream if self.mapping == "interleaved" else _best_fraction(self.timing, self.mapping)) * data

    @property
    def turn_fs(self) -> int:
        service = self.service
        return sum(service.turns_fs) if service else 0

    def occupied_fs(self, read: Fraction | int, written: Fraction | int = 0, pieces: Pieces | None = None) -> int:
        cost = _scaled_fs(read, self.fraction(pieces), self.bandwidth) if read else 0
        return cost + (_scaled_fs(written, self.fraction(pieces, write=True), self.bandwidth) if written else 0)

    def least_fs(self, size: Fraction | int) -> int:
        best = (_best_fraction(self.timing, self.mapping) if self.timing else 1 - self.refresh) * (1 - self.ecc)
        return _scaled_fs(size, best, self.bandwidth)


def _scaled_fs(size: Fraction | int, fraction: Fraction, bandwidth: int) -> int:
    """Femtoseconds for `size` bytes at a fraction of a bandwidth, rounded up."""
    return -(-size.numerator * fraction.denominator * FS_PER_S // (size.denominator * fraction.numerator * bandwidth))


class Hbm(Dram, kind="hbm"):
    """Stacked main memory."""


class Cache(Memory, kind="cache"):
    """A cache in front of the main memory, shared by all units.

    `efficiency` is the share of its bandwidth that kernels reach. `reuse` is the share of its capacity beyond which nothing of what
    was touched is found again, `held` the share up to which all of it is: in between the share that is found falls in a straight line,
    as sets and slices fill up unevenly. Without either, least-recently-used replacement is perfect.
    """

    efficiency: Share = Fraction(1)
    reuse: Share | None = None
    held: Ratio = Fraction(0)

    @model_validator(mode="after")
    def _ordered(self) -> Cache:
        if self.reuse is not None and self.held >= self.reuse:
            raise HardwareError(f"held: expected less than reuse ({self.reuse}), up to which something is found, found {self.held}")
        return self

    @property
    def window(self) -> int:
        """Bytes that may be touched between two uses of what is still found."""
        return int(self.total * self.reuse) if self.reuse is not None else self.total

    def found(self, distance: int) -> Fraction:
        """Share that is still there of something last touched so many bytes ago, itself included.

        >>> Cache(capacity=1000, bandwidth=1, reuse="0.5").found(100)
        Fraction(4, 5)
        """
        if self.reuse is None and not self.held:
            return Fraction(distance <= self.total)
        falling = max(Fraction(1), self.window - self.total * self.held)
        return max(Fraction(0), min(Fraction(1), (self.window - distance) / falling))

    def kept(self, touched: int) -> Fraction:
        """Share that is still there at the end of something written as steadily as so many bytes are touched: `found`, on average over
        the distances up to these bytes.

        >>> Cache(capacity=1000, bandwidth=1, reuse="0.5").kept(250), Cache(capacity=1000, bandwidth=1).kept(4000)
        (Fraction(3, 4), Fraction(1, 4))
        """
        whole, window = self.total * self.held, Fraction(max(1, self.window))
        if self.reuse is None and not self.held:
            whole = window
        if touched <= whole:
            return Fraction(1)
        end = min(Fraction(touched), window)  # beyond the window nothing is found; up to there the share falls in a straight line
        fallen = (end - whole) ** 2 / (2 * max(Fraction(1), window - whole))
        return (end - fallen) / touched

    def occupied_fs(self, read: Fraction | int, written: Fraction | int = 0, pieces: Pieces | None = None) -> int:
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
