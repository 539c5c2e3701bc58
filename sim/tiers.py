"""Chains of memories of falling speed: which objects are resident where, and what moving them costs.

An object has a home, where it always exists, and may be resident in one faster tier. What is read only is dropped on
eviction; what was written goes back home first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from hw.errors import HardwareError, nearest

POLICIES = ("lru", "lfu", "window")


@dataclass(frozen=True)
class Stored:
    """An object of `size_bytes`. Weights are read only; caches of keys and values are not."""

    name: str
    size_bytes: int
    read_only: bool = True


@dataclass(frozen=True)
class Move:
    """`size_bytes` of `name` into the tier (`load`), out of it to the home (`write_back`), or forgotten (`drop`)."""

    kind: Literal["load", "write_back", "drop"]
    name: str
    size_bytes: int


@dataclass
class Tier:
    """What is resident in a memory of `capacity` bytes.

    `policy`: `lru` evicts what was used longest ago, `lfu` what was used least often (then longest ago), `window` whatever
    was not used in the last `window` steps - at once, even if there is room. Pinned objects stay.
    """

    name: str
    capacity: int
    policy: str = "lru"
    window: int = 0
    step: int = 0
    _held: dict[str, Stored] = field(default_factory=dict)
    _pinned: set[str] = field(default_factory=set)
    _dirty: set[str] = field(default_factory=set)
    _used: dict[str, int] = field(default_factory=dict)
    _count: Counter[str] = field(default_factory=Counter)
    _last_step: dict[str, int] = field(default_factory=dict)
    _clock: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise HardwareError(
                f"{self.name}: unknown policy {self.policy!r}, expected one of {', '.join(POLICIES)}{nearest(self.policy, POLICIES)}"
            )
        if self.capacity < 1 or (self.policy == "window" and self.window < 1):
            raise HardwareError(f"{self.name}: expected a capacity of at least 1 B and, for the policy window, a window of at least 1 step")

    @property
    def used(self) -> int:
        return sum(item.size_bytes for item in self._held.values())

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of what is held, the one used longest ago first."""
        return tuple(sorted(self._held, key=lambda name: self._used[name]))

    def pin(self, item: Stored) -> list[Move]:
        """Loads `item` if need be and keeps it for good. Raises `HardwareError` when the pinned objects do not fit together."""
        moves = self.touch(item)
        self._pinned.add(item.name)
        return moves

    def touch(self, item: Stored, *, write: bool = False) -> list[Move]:
        """Uses `item` now; returns what moved: evictions first, then its load unless it was resident.

        Raises `HardwareError` naming the missing bytes when it cannot fit beside what is pinned, and for writing what is read only.
        """
        if write and item.read_only:
            raise HardwareError(f"{self.name}: {item.name!r} is read only")
        moves: list[Move] = []
        if item.name not in self._held:
            fixed = sum(self._held[name].size_bytes for name in self._pinned)
            if item.size_bytes > self.capacity - fixed:
                raise HardwareError(
                    f"{self.name}: {item.name!r} needs {item.size_bytes} B; {fixed} B of {self.capacity} B are pinned: "
                    f"{item.size_bytes - (self.capacity - fixed)} B missing"
                )
            while self.used + item.size_bytes > self.capacity:
                moves.append(self._evict(min((name for name in self._held if name not in self._pinned), key=self._rank)))
            self._held[item.name] = item
            moves.append(Move("load", item.name, item.size_bytes))
        self._clock += 1
        self._used[item.name] = self._clock
        self._count[item.name] += 1
        self._last_step[item.name] = self.step
        if write:
            self._dirty.add(item.name)
        return moves

    def advance(self) -> list[Move]:
        """Ends a step (a token): under the policy `window` what fell out of the window leaves."""
        self.step += 1
        if self.policy != "window":
            return []
        old = [name for name in self.resident if name not in self._pinned and self._last_step[name] <= self.step - 1 - self.window]
        return [self._evict(name) for name in old]

    def flush(self) -> list[Move]:
        """Writes back what was written; everything stays resident."""
        moves = [Move("write_back", name, self._held[name].size_bytes) for name in self.resident if name in self._dirty]
        self._dirty.clear()
        return moves

    def _rank(self, name: str) -> tuple[int, int]:
        return (self._count[name] if self.policy == "lfu" else 0, self._used[name])

    def _evict(self, name: str) -> Move:
        item = self._held.pop(name)
        self._count.pop(name, None)
        if name in self._dirty:
            self._dirty.remove(name)
            return Move("write_back", name, item.size_bytes)
        return Move("drop", name, item.size_bytes)


Mover = Callable[[int], int]
"""Femtoseconds to move so many bytes, such as `LinkSpec.transfer_fs`."""


def moving_fs(moves: Iterable[Move], load: Mover, write_back: Mover, *, duplex: bool = True) -> int:
    """Femtoseconds of `moves`, loads and write-backs each one after the other, both directions at once on a duplex link."""
    moves = list(moves)
    loads = sum(load(move.size_bytes) for move in moves if move.kind == "load")
    backs = sum(write_back(move.size_bytes) for move in moves if move.kind == "write_back")
    return max(loads, backs) if duplex else loads + backs


def balanced_lock(sizes: list[int], budget_bytes: int, compute_fs: list[int], bandwidth: int) -> list[int]:
    """Bytes of each layer to keep resident so that a pass with prefetching of one layer takes least time.

    Each layer takes max(compute, (size - locked) / bandwidth); spending the budget where it shortens a layer most evenly
    (water filling on the time that streaming exceeds compute) is optimal for this sum of maxima. Raises `HardwareError` for
    a negative budget.
    """
    if budget_bytes < 0 or bandwidth < 1:
        raise HardwareError(f"expected no negative budget and a bandwidth of at least 1 B/s, found {budget_bytes} B and {bandwidth} B/s")
    useful = [max(0, size - compute * bandwidth // 10**15) for size, compute in zip(sizes, compute_fs, strict=True)]
    total = sum(useful)
    if total <= budget_bytes:
        return useful
    locked = [amount * budget_bytes // total for amount in useful]
    spare = budget_bytes - sum(locked)
    for i in sorted(range(len(sizes)), key=lambda i: (locked[i] - useful[i], i))[:spare]:
        locked[i] += 1
    return locked
