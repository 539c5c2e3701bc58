"""On-chip SRAM in time and space: banks and ports decide how many cycles an access takes, an allocator what still fits."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray

from hw.errors import HardwareError


@dataclass(frozen=True)
class SramBanks:
    """`banks` of words of `word_bytes`; consecutive words lie in consecutive banks.

    Each bank has `read_ports` and `write_ports`; `shared_ports` says that a bank of one port of each kind is single-ported:
    a read and a write of it take turns.
    """

    banks: int
    word_bytes: int
    read_ports: int = 1
    write_ports: int = 1
    shared_ports: bool = False

    def __post_init__(self) -> None:
        for name in ("banks", "word_bytes"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise HardwareError(f"{name}: expected a power of two, found {value}")
        if self.read_ports < 1 or self.write_ports < 1:
            raise HardwareError(f"expected at least one read and one write port, found {self.read_ports} and {self.write_ports}")

    @property
    def bytes_per_cycle(self) -> int:
        """Bytes of reads per cycle without conflicts."""
        return self.banks * self.word_bytes * self.read_ports

    def cycles(self, reads: NDArray[np.int64], writes: NDArray[np.int64] | None = None) -> int:
        """Cycles that one group of simultaneous accesses takes, `reads` and `writes` being byte addresses.

        Reads of the same word are served by one access (broadcast); writes of the same word take turns. The fullest bank
        decides: ceil(accesses / ports), reads and writes one after the other on shared ports.
        """
        busy_reads = self._fullest(np.unique(np.asarray(reads, np.int64) // self.word_bytes), self.read_ports)
        none = np.zeros(0, np.int64)
        busy_writes = self._fullest(np.asarray(none if writes is None else writes, np.int64) // self.word_bytes, self.write_ports)
        if not self.shared_ports:
            return int(max(busy_reads.max(initial=0), busy_writes.max(initial=0)))
        return int((busy_reads + busy_writes).max(initial=0))

    def strided_cycles(self, lanes: int, stride_bytes: int) -> int:
        """Cycles for `lanes` reads `stride_bytes` apart: the closed form of `cycles` for word-aligned strides."""
        if stride_bytes % self.word_bytes:
            raise HardwareError(f"stride: expected a multiple of the word ({self.word_bytes} B), found {stride_bytes} B")
        words = stride_bytes // self.word_bytes
        if words == 0 or lanes < 1:
            return min(lanes, 1)
        reached = self.banks // int(np.gcd(words, self.banks))  # banks that the stride visits
        return ceil(ceil(lanes / reached) / self.read_ports)

    def _fullest(self, words: NDArray[np.int64], ports: int) -> NDArray[np.int64]:
        count = np.bincount(words % self.banks, minlength=self.banks)
        return -(-count // ports)


@dataclass
class Allocator:
    """The contents of a memory of `capacity` bytes, by name: first fit, aligned to `align` bytes, nothing is ever moved."""

    name: str
    capacity: int
    align: int = 1
    peak: int = 0
    _held: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.align < 1:
            raise HardwareError(
                f"{self.name}: expected a capacity and an alignment of at least 1 B, found {self.capacity} B and {self.align} B"
            )

    @property
    def used(self) -> int:
        """Bytes held, padding included."""
        return sum(size for _, size in self._held.values())

    @property
    def free_bytes(self) -> int:
        return self.capacity - self.used

    def allocate(self, key: str, size_bytes: int) -> int:
        """Byte address of `size_bytes` for `key`.

        Raises `HardwareError` that names the missing bytes and the largest holders, or says that only the pieces are too small.
        """
        if size_bytes < 1:
            raise HardwareError(f"{self.name}: {key!r} asks for {size_bytes} B, expected at least one")
        if key in self._held:
            raise HardwareError(f"{self.name}: {key!r} is held already; free it first")
        size = -(-size_bytes // self.align) * self.align
        start, gaps = 0, []
        for at, length in sorted(self._held.values()):
            gaps.append((start, at - start))
            start = at + length
        gaps.append((start, self.capacity - start))
        for at, length in gaps:
            if length >= size:
                self._held[key] = (at, size)
                self.peak = max(self.peak, self.used)
                return at
        largest = sorted(self._held.items(), key=lambda item: -item[1][1])[:3]
        holders = ", ".join(f"{held} ({length} B)" for held, (_, length) in largest)
        if size > self.free_bytes:
            raise HardwareError(
                f"{self.name}: {key!r} needs {size} B, {self.free_bytes} B of {self.capacity} B are free: "
                f"{size - self.free_bytes} B missing; largest holders: {holders or 'none'}"
            )
        widest = max(length for _, length in gaps)
        raise HardwareError(
            f"{self.name}: {key!r} needs {size} B in one piece; {self.free_bytes} B are free, but the largest piece is {widest} B: "
            f"{size - widest} B missing; largest holders: {holders}"
        )

    def free(self, key: str) -> None:
        """Gives the bytes of `key` back. Raises `HardwareError` when it holds none."""
        if key not in self._held:
            raise HardwareError(f"{self.name}: {key!r} holds nothing; held: {', '.join(self._held) or 'nothing'}")
        del self._held[key]

    def address(self, key: str) -> int:
        """Where `key` lies. Raises `HardwareError` when it holds nothing."""
        if key not in self._held:
            raise HardwareError(f"{self.name}: {key!r} holds nothing; held: {', '.join(self._held) or 'nothing'}")
        return self._held[key][0]
