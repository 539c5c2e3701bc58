"""The memory map: where weights, caches and vectors lie in the channels of HBM, and how many bits a value takes there.

A core's buffers A and global have `channels` HBM channels of their own; a region of that space starts at the same address in
each of them, and an instruction names channel and address. Buffers B, meta, mask and bias are fed from one further channel,
the side channel, whose regions hold biases and the indices of sparse weights.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapper.errors import MappingError

ALIGNMENT = 64
"""Regions start at multiples of this: two beats of a 256-bit HBM port."""
KINDS = ("weight", "index", "counts", "bias", "keys", "values", "value")


@dataclass(frozen=True)
class Region:
    """`size` bytes from `start` on in each of `channels` channels (side: in the side channel), `count` times, `size` apart.

    A value takes `bits` in memory, and `index_bits` more where the index of a sparse weight stands beside it: a load of n buffer
    bytes reads n x (bits + index_bits) / 8. `shift` is the requantisation of a
    product with this region's values: its sums are divided by 2^shift. `pitch` is the distance of rows (value) or of heads (keys,
    values, and matrices of several heads), `width` the elements of a head (keys, values) or of a row (value).
    """

    name: str
    kind: str
    start: int
    size: int
    channels: int
    bits: int = 8
    index_bits: int = 0
    shift: int = 0
    pitch: int = 0
    width: int = 0
    count: int = 1
    side: bool = False

    @property
    def stored(self) -> int:
        """Bits per value in memory."""
        return self.bits + self.index_bits

    @property
    def end(self) -> int:
        return self.start + self.size * self.count

    @property
    def total(self) -> int:
        """Bytes over all channels and repetitions."""
        return self.size * self.channels * self.count


@dataclass
class MemoryMap:
    """Regions by name, in the order of their addresses within the two spaces."""

    regions: dict[str, Region] = field(default_factory=dict)
    _ends: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})

    def add(self, name: str, kind: str, size: int, channels: int, **properties: Any) -> Region:
        """A new region behind the others of its space."""
        side = kind in ("index", "counts", "bias")
        size = -(-size // ALIGNMENT) * ALIGNMENT
        region = Region(name, kind, self._ends[side], size, 1 if side else channels, side=side, **properties)
        self._ends[side] = region.end
        self.regions[name] = region
        return region

    def __getitem__(self, name: str) -> Region:
        return self.regions[name]

    @property
    def total(self) -> int:
        """Bytes that all regions take."""
        return sum(region.total for region in self.regions.values())

    def ordered(self, side: bool) -> list[Region]:
        return sorted((r for r in self.regions.values() if r.side == side), key=lambda r: r.start)

    def find(self, address: int, side: bool) -> Region:
        """The region that holds an address. Raises `MappingError` when there is none."""
        regions = self.ordered(side)
        index = bisect_right([r.start for r in regions], address) - 1
        if index < 0 or address >= regions[index].end:
            raise MappingError(f"address {address:#x} lies in no region of the {'side channel' if side else 'channels'}")
        return regions[index]

    def bits(self, addresses: NDArray[np.int64], side: bool) -> NDArray[np.int64]:
        """Bits per value at each address; 8 where no region is."""
        regions = self.ordered(side)
        if not regions:
            return np.full(len(addresses), 8)
        at = np.searchsorted(np.array([r.start for r in regions]), addresses, side="right") - 1
        return np.array([r.stored for r in regions])[np.maximum(at, 0)]

    def by_kind(self) -> Mapping[str, int]:
        """Bytes by kind of region."""
        totals: dict[str, int] = {}
        for region in self.regions.values():
            totals[region.kind] = totals.get(region.kind, 0) + region.total
        return totals

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(region) for region in self.regions.values()]

    @classmethod
    def from_json(cls, entries: Iterable[Mapping[str, Any]], where: str) -> MemoryMap:
        found = cls()
        try:
            for entry in entries:
                region = Region(**entry)
                if (
                    region.kind not in KINDS
                    or region.bits not in range(1, 9)
                    or region.index_bits not in (0, 4)
                    or region.size < 0
                    or region.count < 1
                ):
                    raise MappingError(f"{where}: region {region.name!r} is not valid: {region}")
                found.regions[region.name] = region
                found._ends[region.side] = max(found._ends[region.side], region.end)
        except TypeError as error:
            raise MappingError(f"{where}: not a memory map ({error})") from None
        return found
