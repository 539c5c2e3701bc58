"""Where a kernel may be cut between two units, and which experts of a mixture go to which.

Memory that serves two ways at once does so from different sections (bank bundles): every streamed tensor lies in as many stripes
as there are sections, one in each, cut along heads, sequences, columns or, round robin, experts. Units that share a kernel then
use whole sections each, so that they never meet in one.

Experts are divided by a table of what one expert with n tokens takes on either unit. The rule moves the experts with fewest tokens
from the first unit to the second for as long as that helps (Yun et al., Duplex, MICRO 2024); the optimum considers every division.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import ceil

from hw.device import Device
from mapper.kernels import Kernel

Tokens = tuple[int, ...]
"""Tokens of some experts, fewest first."""

Division = tuple[Tokens, Tokens]
"""Experts of the first and of the second unit."""

Cost = Callable[[int], int]
"""Femtoseconds of an expert by its tokens."""

FRONT = 1024
"""Divisions of some of the experts that none beats in both units' times; with more of them the slowest are dropped."""


def sections(device: Device, one: str, other: str) -> int:
    """Sections of main memory of which two units that work at the same time use different ones; 1 where it does not matter."""
    ways = [device.own_way(unit) if unit in device.units else None for unit in (one, other)]
    if ways[0] == ways[1]:
        return 1
    return max((way.sections for way in ways if way is not None and way.access == "concurrent"), default=1)


def cuts(kernel: Kernel, dimension: str, size: int, parts: int) -> list[int] | None:
    """Positions at which a kernel may be cut along a dimension so that both sides use sections of their own; None for any."""
    if parts == 1:
        return None
    if dimension == "m":
        return []  # all rows meet the same weights
    return sorted({ceil(size * part / parts) for part in range(1, parts)} - {0, size})


def groups(tokens: Sequence[int], parts: int) -> list[Tokens]:
    """Experts that must stay together: each by itself, or those of a section, over which they are dealt round robin."""
    if parts == 1:
        return [(count,) for count in tokens]
    return [tuple(tokens[part::parts]) for part in range(min(parts, len(tokens)))]


def by_rule(items: Sequence[Tokens], first: Cost, second: Cost) -> Division:
    """All experts on the first unit, then the smallest, one after the other, on the second; the best of these divisions."""
    order = sorted(items, key=lambda item: (sum(item), item))
    own, moved = sum(sum(map(first, item)) for item in order), 0
    best, count = max(own, moved), 0
    for index, item in enumerate(order):
        own, moved = own - sum(map(first, item)), moved + sum(map(second, item))
        if max(own, moved) < best:
            best, count = max(own, moved), index + 1
    return _joined(order[count:]), _joined(order[:count])


def optimum(items: Sequence[Tokens], first: Cost, second: Cost) -> Division:
    """The division whose slower unit ends first: exact as long as no more than `FRONT` partial divisions are worth keeping."""
    kinds = Counter(items)
    rules = [by_rule(items, first, second), by_rule(items, second, first)[::-1]]
    limit = min(max(sum(map(first, there)), sum(map(second, here))) for there, here in rules)
    front: list[tuple[int, int, tuple[Tokens, ...], tuple[Tokens, ...]]] = [(0, 0, (), ())]
    for item in sorted(kinds, key=lambda item: (-sum(item), item)):
        there, here, count = sum(map(first, item)), sum(map(second, item)), kinds[item]
        grown = [
            (a + there * more, b + here * (count - more), (*x, *[item] * more), (*y, *[item] * (count - more)))
            for a, b, x, y in front
            for more in range(count + 1)
            if a + there * more <= limit and b + here * (count - more) <= limit
        ]
        grown.sort(key=lambda state: state[:2])
        front = []
        for state in grown:  # the first unit's time rises: what is kept must lower the second's
            if not front or state[1] < front[-1][1]:
                front.append(state)
        if len(front) > FRONT:
            front = sorted(front, key=lambda state: max(state[:2]))[:FRONT]
    best = min(front, key=lambda state: (max(state[:2]), state[0] + state[1]))
    return _joined(best[2]), _joined(best[3])


def _joined(items: Sequence[Tokens]) -> Tokens:
    return tuple(sorted(count for item in items for count in item))
