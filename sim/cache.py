"""Caches: an exact set-associative LRU cache, and the analytic model of it that reuse distances allow.

`LruCache` follows every address; state stays between calls. `hit_rate` needs only how many other lines were touched since
the last use of a line: under random placement, k other lines leave it in a set of `ways` when fewer than `ways` of them
fell into its set, which is a binomial probability (A. J. Smith, "A comparative study of set associative memory mapping
algorithms", IEEE TSE 1978). With one set it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma, log

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hw.errors import HardwareError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CacheCount:
    """Accesses that hit and missed, and dirty lines written back on eviction."""

    hits: int
    misses: int
    writebacks: int

    @property
    def hit_rate(self) -> float:
        total = self.hits + self.misses
        return self.hits / total if total else 0.0


@njit(cache=True, nogil=True)
def _access(lines: Ints, writes: Ints, tags: Ints, dirty: Ints) -> tuple[int, int, int]:
    """Each set keeps its lines most recently used first."""
    sets, ways = tags.shape
    hits = misses = back = 0
    for i in range(lines.shape[0]):
        line = lines[i]
        s = line % sets
        found = ways - 1
        hit = False
        for w in range(ways):
            if tags[s, w] == line:
                found = w
                hit = True
                break
        if hit:
            hits += 1
            mark = dirty[s, found] | writes[i]
        else:
            misses += 1
            if tags[s, found] >= 0 and dirty[s, found]:
                back += 1
            mark = writes[i]
        for w in range(found, 0, -1):
            tags[s, w] = tags[s, w - 1]
            dirty[s, w] = dirty[s, w - 1]
        tags[s, 0] = line
        dirty[s, 0] = mark
    return hits, misses, back


@njit(cache=True, nogil=True)
def _distances(lines: Ints, previous: Ints) -> Ints:
    """For each access the number of other lines touched since its line's last use (-1: first use), by a Fenwick tree."""
    n = lines.shape[0]
    tree = np.zeros(n + 1, np.int64)
    out = np.empty(n, np.int64)
    for i in range(n):
        before = previous[i]
        if before < 0:
            out[i] = -1
        else:
            total = 0
            k = i
            while k > 0:
                total += tree[k]
                k -= k & -k
            k = before + 1
            while k > 0:
                total -= tree[k]
                k -= k & -k
            out[i] = total
            k = before + 1
            while k <= n:
                tree[k] -= 1
                k += k & -k
        k = i + 1
        while k <= n:
            tree[k] += 1
            k += k & -k
    return out


class LruCache:
    """`capacity` bytes in lines of `line_bytes`, `ways` per set, least recently used out first, write-back and write-allocate.

    Raises `HardwareError` when the geometry is not whole sets of powers of two.
    """

    def __init__(self, capacity: int, line_bytes: int, ways: int) -> None:
        if line_bytes < 1 or line_bytes & (line_bytes - 1):
            raise HardwareError(f"line_bytes: expected a power of two, found {line_bytes}")
        if ways < 1 or capacity < 1 or capacity % (line_bytes * ways):
            raise HardwareError(f"capacity: expected a multiple of line x ways = {line_bytes * max(ways, 1)} B, found {capacity} B")
        sets = capacity // (line_bytes * ways)
        if sets & (sets - 1):
            raise HardwareError(
                f"capacity: {capacity} B in lines of {line_bytes} B and {ways} ways are {sets} sets, expected a power of two"
            )
        self.capacity, self.line_bytes, self.ways, self.sets = capacity, line_bytes, ways, sets
        self._tags = np.full((sets, ways), -1, np.int64)
        self._dirty = np.zeros((sets, ways), np.int64)

    def access(self, addresses: NDArray[np.int64], writes: NDArray[np.bool_] | bool = False) -> CacheCount:
        """Touches byte addresses in order; `writes` marks lines dirty."""
        lines = np.asarray(addresses, np.int64) // self.line_bytes
        if len(lines) and int(lines.min()) < 0:
            raise HardwareError(f"expected addresses of at least 0, found {int(np.min(addresses))}")
        dirty = np.broadcast_to(np.asarray(writes), lines.shape).astype(np.int64)
        return CacheCount(*(int(count) for count in _access(lines, dirty, self._tags, self._dirty)))

    def flush(self) -> int:
        """Empties the cache; returns the dirty lines written back."""
        back = int(self._dirty[self._tags >= 0].sum())
        self._tags.fill(-1)
        self._dirty.fill(0)
        return back


def reuse_distances(addresses: NDArray[np.int64], line_bytes: int) -> Ints:
    """Per access: distinct other lines touched since the last use of its line, -1 at its first use."""
    lines = np.asarray(addresses, np.int64) // line_bytes
    _, codes = np.unique(lines, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    previous = np.full(len(lines), -1, np.int64)
    same = codes[order][1:] == codes[order][:-1]
    previous[order[1:][same]] = order[:-1][same]
    return np.asarray(_distances(lines, previous))


def survival(distance: int, sets: int, ways: int) -> float:
    """Probability that a line is still cached after `distance` other lines: fewer than `ways` of them fell into its set."""
    if distance < 0:
        return 0.0
    if distance < ways:
        return 1.0
    if sets == 1:
        return 0.0
    p, total = 1 / sets, 0.0
    for k in range(ways):
        choose = lgamma(distance + 1) - lgamma(k + 1) - lgamma(distance - k + 1)
        total += exp(choose + k * log(p) + (distance - k) * log(1 - p))
    return min(1.0, total)


def hit_rate(distances: Ints, sets: int, ways: int) -> float:
    """The analytic hit rate of accesses with these reuse distances. Raises `HardwareError` for no access."""
    if len(distances) == 0:
        raise HardwareError("no access: a hit rate needs at least one")
    values, counts = np.unique(distances, return_counts=True)
    return float(sum(survival(int(d), sets, ways) * int(n) for d, n in zip(values, counts, strict=True))) / len(distances)
