"""Strategies: how the mapping of a kernel is chosen from its space.

A strategy is a function that yields mappings of a `Space`, the one it would take first:

    from mapper import strategy

    @strategy("my_idea")
    def mine(space):
        yield next(iter(space.candidates()))

What does not fit is passed over; what follows the first that fits is looked at only within a budget (`--budget 5s`), and the
best by the objective is then taken. `search` and `exhaustive` look at the whole space and prove their choice.
"""

from __future__ import annotations

import random as randomness
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from mapper.errors import CapacityError, MappingError
from mapper.mapping import OperatorMapping
from mapper.memo import Memo, Spaces
from mapper.nest import Nest
from mapper.objective import LATENCY, Objective
from mapper.plan import Plan
from mapper.search import Choice, Space, Tabled, capacities, family_of, others, search
from mapper.stop import NEVER, Stop
from workloads.errors import nearest

Generator = Callable[[Space], Iterable[OperatorMapping]]
"""Yields mappings of a space, the default first."""

STRATEGIES: dict[str, Generator] = {}
"""Every strategy by its name."""

DEFAULT = "search"

KNOWN_SPACES = 64
"""Spaces of which a chooser remembers the costs, more than a layer has kernels."""


def strategy(name: str) -> Callable[[Generator], Generator]:
    """Registers a generator of mappings under `name`; a later one of the same name replaces it."""

    def register(generator: Generator) -> Generator:
        STRATEGIES[name] = generator
        return generator

    return register


def strategy_named(name: str) -> Generator:
    """The strategy of a name. Raises `MappingError` with the nearest name."""
    if name not in STRATEGIES:
        hint = nearest(name, STRATEGIES)
        raise MappingError(f"strategy {name!r}: unknown, expected one of {', '.join(STRATEGIES)}{hint}; --load FILE.py adds your own")
    return STRATEGIES[name]


class Chooser(Protocol):
    """Chooses a mapping for each kernel of a workload."""

    def choose(self, space: Space, name: str, key: Hashable) -> Choice:
        """The choice for kernel `name`. Kernels whose spaces are alike in all but the name have equal `key`s."""


class Search:
    """Chooses by a strategy and an objective, until it has to `stop`; `memo` keeps proven choices on disk, `spaces` the costs of
    mappings in this process. Neither changes a choice.

    A kernel gets its share of the time that is left, `kernels` being how many are expected. What is not finished by then, or when
    it is interrupted, is the best mapping known so far.
    """

    def __init__(
        self,
        strategy: str = DEFAULT,
        objective: Objective = LATENCY,
        stop: Stop = NEVER,
        memo: Memo | None = None,
        kernels: int = 1,
        spaces: Spaces | None = None,
    ) -> None:
        self.strategy, self.objective, self.stop, self.memo = strategy, objective, stop, memo
        self.spaces = spaces if spaces is not None else Spaces(KNOWN_SPACES)
        self.generator = strategy_named(strategy)
        self._left = kernels

    def choose(self, space: Space, name: str, key: Hashable) -> Choice:
        stop, self._left = self.stop.share(self._left), max(1, self._left - 1)
        if self.strategy == DEFAULT:
            return self._searched(space, name, key, stop)
        if self.strategy == "exhaustive":
            return exhaustive_choice(space, name, self.objective, stop)
        return best_of(self.generator(space), self.strategy, space, name, self.objective, stop)

    def _searched(self, space: Space, name: str, key: Hashable, stop: Stop) -> Choice:
        if self.memo is None:
            return search(space, name, self.objective, stop, self.spaces.recall(space, key))
        digest = self.memo.digest(space.target, key, self.objective.name)
        if (kept := self.memo.read(digest, space)) is not None:
            return kept
        choice = search(space, name, self.objective, stop, self.spaces.recall(space, key))
        if choice.proven:
            self.memo.write(digest, choice)
        return choice


def best_of(
    mappings: Iterable[OperatorMapping], strategy: str, space: Space, name: str, objective: Objective = LATENCY, stop: Stop = NEVER
) -> Choice:
    """The first mapping that fits, or the best of those that come before a time limit.

    Raises `CapacityError` when none fits, `MappingError` for a mapping that is not of this space.
    """
    best: Plan | None = None
    best_key: tuple[Any, ...] = ()
    have, examined = capacities(space), 0
    short: list[tuple[int, str, int]] = []
    for mapping in mappings:
        if not isinstance(mapping, OperatorMapping):
            found = type(mapping).__name__
            raise MappingError(f"strategy {strategy!r}, operator {name!r}: expected it to yield OperatorMapping, found {found}")
        family = family_of(space, mapping)
        missing = [(need - have[pad], pad, need) for pad, need in family.footprint(mapping).items() if need > have[pad]]
        if missing:
            short.append(max(missing))
        else:
            plan = family.plan(mapping)
            examined += 1
            key = objective.key(space, plan)
            if best is None or key < best_key:
                best, best_key = plan, key
        if (best is not None and not stop.limited) or stop.reached():
            break
    if best is None:
        nearest_miss = min(short, default=None)
        if nearest_miss is None:
            raise MappingError(f"operator {name!r}: strategy {strategy!r} yields no mapping")
        missing_bytes, pad, need = nearest_miss
        raise CapacityError(
            f"operator {name!r}: no mapping of strategy {strategy!r} fits: the smallest needs {need} B in {pad!r}, which holds "
            f"{have[pad]} B ({missing_bytes} B short)"
        )
    return Choice(best, 0, False, examined)


def exhaustive_choice(space: Space, name: str, objective: Objective = LATENCY, stop: Stop = NEVER) -> Choice:
    """The best mapping by looking at every one that fits: the oracle for searches that leave some out."""
    have, examined, size, complete, fastest = capacities(space), 0, 0, True, 0
    best: Plan | None = None
    best_key: tuple[Any, ...] = ()
    for family in (space, *others(space)):
        for mapping in family.candidates():
            size += 1
            if any(need > have[pad] for pad, need in family.footprint(mapping).items()):
                continue
            if best is not None and stop.reached():
                complete = False
                break
            plan = family.plan(mapping)
            examined += 1
            fastest = min(fastest, plan.latency_fs) if best is not None else plan.latency_fs
            key = objective.key(space, plan)
            if best is None or key < best_key:
                best, best_key = plan, key
    if best is None:
        return search(space, name, objective)  # raises, naming what is missing
    return Choice(best, fastest if complete else 0, complete, examined, size)


@strategy("search")
def _search(space: Space) -> Iterator[OperatorMapping]:
    """The best mapping of the space."""
    yield search(space, "").plan.mapping


@strategy("heuristic")
def heuristic(space: Space) -> Iterator[OperatorMapping]:
    """A rule that takes no search: the largest balanced tiles that fit, with the stationary operand the unit prefers."""
    if isinstance(space, Nest):
        yield from space.rules_of_thumb()
    yield from _middle_first(space)


def _middle_first(space: Space) -> Iterator[OperatorMapping]:
    """Candidates from the middle of the list of a family: neither the smallest nor the largest tiles."""
    if isinstance(space, Tabled):
        yield from (space.mapping(int(row)) for row in space.table.fitting(capacities(space)))
    else:
        candidates = list(islice(space.candidates(), 4096))
        middle = len(candidates) // 2
        yield from candidates[middle:]
        yield from reversed(candidates[:middle])
    for family in others(space):
        yield from family.candidates()


@strategy("exhaustive")
def exhaustive(space: Space) -> Iterator[OperatorMapping]:
    """The best mapping of the space, by looking at every one."""
    yield exhaustive_choice(space, "").plan.mapping


@strategy("random")
def random(space: Space) -> Iterator[OperatorMapping]:
    """Mappings that fit in a random order; the same order for the same space."""
    if isinstance(space, Tabled) and (rows := space.table.fitting(capacities(space)).tolist()):
        generator = randomness.Random(len(rows))
        while True:
            yield space.mapping(rows[generator.randrange(len(rows))])
    candidates = [mapping for family in (space, *others(space)) for mapping in family.candidates()]
    seed = zlib.crc32(repr([str(c) for c in candidates[:64]]).encode())
    randomness.Random(seed).shuffle(candidates)
    yield from candidates


def _dataflow(space: Space, order: str, hold: str) -> Iterator[OperatorMapping]:
    """Mappings of tiled products of one loop order that hold one operand; other kernels have no choice of it."""
    if not isinstance(space, Nest):
        yield from _middle_first(space)
        return
    rows = space.table.fitting(capacities(space))
    c = space.table.columns.take(rows)
    wanted = [space.table.orders[int(index)] == order for index in c.order]
    held = c.hold_b if hold == "b" else ~c.hold_a & ~c.hold_b
    ranked = sorted(range(len(rows)), key=lambda i: (not wanted[i], not held[i], -int(c.m[i] * c.n[i] * c.k[i]), i))
    yield from (space.mapping(int(rows[i])) for i in ranked)
    for family in others(space):
        yield from family.candidates()


@strategy("weight_stationary")
def weight_stationary(space: Space) -> Iterator[OperatorMapping]:
    """Weights stay on the chip while all rows pass: columns outermost, rows innermost where the unit allows it."""
    order = "nkm" if isinstance(space, Nest) and "nkm" in space.table.orders else "nmk"
    return _dataflow(space, order, "b")


@strategy("output_stationary")
def output_stationary(space: Space) -> Iterator[OperatorMapping]:
    """Sums stay on the chip until they are complete: the contraction innermost."""
    return _dataflow(space, "mnk", "none")


@strategy("refetch")
def refetch(space: Space) -> Iterator[OperatorMapping]:
    """Fewest bytes first, then the largest tiles: of operands that fit no buffer, the cheaper one is fetched again (BitMoD's rule)."""
    if not isinstance(space, Nest):
        yield from _middle_first(space)
        return
    rows = space.table.fitting(capacities(space))
    c, moved = space.table.columns.take(rows), space.table.traffic(rows)
    ranked = sorted(range(len(rows)), key=lambda i: (moved[i], -int(c.m[i] * c.n[i] * c.k[i]), i))
    yield from (space.mapping(int(rows[i])) for i in ranked)


__all__ = [
    "DEFAULT",
    "STRATEGIES",
    "Chooser",
    "Generator",
    "MappingError",
    "Search",
    "exhaustive_choice",
    "strategy",
    "strategy_named",
]
