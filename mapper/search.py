"""Choosing a mapping: exact costs for the candidates that a bound cannot rule out.

The space of a kernel depends on its shape and the unit only, never on capacities, bandwidths or clocks, and the candidate
with the least exact latency is always found. Relaxing any of them can therefore never make the result worse. A search that is
stopped early still knows a bound: the least one of the candidates that it has not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mapper.errors import CapacityError, MappingError
from mapper.mapping import OperatorMapping
from mapper.objective import LATENCY, Objective
from mapper.plan import Plan
from mapper.stop import NEVER, Stop
from mapper.target import Target

Array = np.ndarray[Any, Any]

FIRST = 64
"""Candidates whose exact costs are computed at first, those with the least bounds; then twice as many each time."""


@dataclass(frozen=True)
class Choice:
    """A plan and how good it is: no mapping of its space takes less than `bound_fs`; `proven` where none is better by the
    objective. `examined` counts the mappings whose exact cost was computed, `space` all there are (0: not counted)."""

    plan: Plan
    bound_fs: int
    proven: bool
    examined: int = 0
    space: int = 0

    @property
    def gap(self) -> float:
        """How much longer the plan takes than the bound of its space, relative to the bound."""
        return self.plan.latency_fs / self.bound_fs - 1 if self.bound_fs else 0.0


class Space(Protocol):
    """A family of mappings of one kernel."""

    @property
    def target(self) -> Target: ...

    def candidates(self) -> Iterable[OperatorMapping]: ...

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]: ...

    def bound(self, mapping: OperatorMapping) -> int: ...

    def plan(self, mapping: OperatorMapping) -> Plan: ...


@runtime_checkable
class Ranked(Space, Protocol):
    """A family that knows its best candidates at once: those that fit and that no other beats, up to ties."""

    def best(self, capacities: dict[str, int]) -> list[OperatorMapping]: ...


class Table(Protocol):
    """All mappings of a space as rows of arrays. Times are in femtoseconds, energies in picojoules, traffic in bytes of main memory."""

    @property
    def size(self) -> int: ...

    def needs(self) -> dict[str, Array]: ...

    def fitting(self, capacities: dict[str, int]) -> Array: ...

    def bounds(self, rows: Array) -> Array: ...

    def latencies(self, rows: Array) -> Array: ...

    def energies(self, rows: Array) -> Array | None: ...

    def traffic(self, rows: Array) -> Array: ...


@runtime_checkable
class Tabled(Space, Protocol):
    """A family whose costs are computed for many mappings at once."""

    @property
    def table(self) -> Any: ...

    def mapping(self, row: int) -> OperatorMapping: ...


def replay(space: Space, mapping: OperatorMapping) -> Plan:
    """The plan of a given mapping. Raises `MappingError` when it names another unit or kind of loop nest, `CapacityError`
    when a buffer is too small."""
    space = family_of(space, mapping)
    like = next(iter(space.candidates()))
    if (mapping.unit, mapping.family) != (like.unit, like.family):
        raise MappingError(
            f"mapping of {mapping.operator!r}: expected {like.family!r} on unit {like.unit!r}, found {mapping.family!r} on {mapping.unit!r}"
        )
    if set(like.parameters) != set(mapping.parameters):
        expected, found = (", ".join(m.parameters) or "none" for m in (like, mapping))
        raise MappingError(f"mapping of {mapping.operator!r}: expected the parameters {expected}, found {found}")
    plan = space.plan(mapping)
    for pad, need in plan.footprint.items():
        have = space.target.device.memories[pad].capacity
        if need > have:
            raise CapacityError(
                f"mapping of {mapping.operator!r} ({mapping}) needs {need} B in {pad!r}, which holds {have} B: {need - have} B short"
            )
    return plan


class Costs:
    """The mappings of a family with what they need and take, each computed once. None of that depends on capacities."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._footprints: dict[int, dict[str, int]] = {}
        self._bounds: dict[int, int] = {}
        self._plans: dict[int, Plan] = {}

    @cached_property
    def candidates(self) -> tuple[OperatorMapping, ...]:
        return tuple(self.space.candidates())

    def footprint(self, index: int) -> dict[str, int]:
        if index not in self._footprints:
            self._footprints[index] = self.space.footprint(self.candidates[index])
        return self._footprints[index]

    def bound(self, index: int) -> int:
        if index not in self._bounds:
            self._bounds[index] = self.space.bound(self.candidates[index])
        return self._bounds[index]

    def plan(self, index: int) -> Plan:
        if index not in self._plans:
            self._plans[index] = self.space.plan(self.candidates[index])
        return self._plans[index]


class Explored:
    """The families of a kernel's space with the costs that searches have found, for further searches with other capacities."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.families = tuple(Costs(family) for family in (space, *others(space)))


def others(space: Space) -> tuple[Space, ...]:
    """Further families of mappings of the same kernel."""
    further: tuple[Space, ...] = getattr(space, "others", ())
    return further


def family_of(space: Space, mapping: OperatorMapping) -> Space:
    """The family among those of a kernel that a mapping belongs to; the first where it belongs to none."""
    for other in others(space):
        if mapping.family == next(iter(other.candidates())).family:
            return other
    return space


def capacities(space: Space) -> dict[str, int]:
    """Bytes of every memory of the device."""
    return {name: memory.capacity for name, memory in space.target.device.memories.items()}


def search(
    space: Space, name: str, objective: Objective = LATENCY, stop: Stop = NEVER, explored: Explored | None = None
) -> Choice:
    """The plan of the least cost by the objective: by default of least latency; among equals the one of least energy, then the
    one that moves fewest bytes, then the first of the space. `explored` is what is known of a space that differs from this one in
    the capacities of scratchpads alone; the choice is the same without.

    Raises `CapacityError` when no mapping fits, naming the memory and the missing bytes of the one that misses least.
    """
    best: Choice | None = None
    refused: CapacityError | None = None
    have = capacities(space)
    for costs in (explored or Explored(space)).families:
        try:
            best = _search_family(costs, have, name, objective, stop, best)
        except CapacityError as error:
            refused = refused or error
    if best is None:
        assert refused is not None
        raise refused
    return best


def _search_family(costs: Costs, have: dict[str, int], name: str, objective: Objective, stop: Stop, known: Choice | None) -> Choice:
    """The best of one family and of what is `known` from others."""
    space = costs.space
    if isinstance(space, Tabled):
        assert known is None
        return _search_table(space, have, name, objective, stop)
    if isinstance(space, Ranked) and objective is LATENCY and (ranked := space.best(have)):
        plans = [space.plan(mapping) for mapping in ranked]
        chosen = min(plans, key=lambda plan: objective.key(space, plan))
        return Choice(chosen, chosen.latency_fs, proven=True, examined=len(plans))
    return _search_one_by_one(costs, have, name, objective, stop, known)


def _search_table(space: Tabled, have: dict[str, int], name: str, objective: Objective, stop: Stop) -> Choice:
    table: Table = space.table
    rows = table.fitting(have)
    if not len(rows):
        raise nothing_fits(have, name, table.needs())
    bounds = table.bounds(rows)
    least = int(bounds.min())
    energies = table.energies(rows) if objective.weighs_energy else None
    ranks = objective.rank(bounds, energies)
    order = np.argsort(ranks, kind="stable")
    rows, bounds, ranks = rows[order], bounds[order], ranks[order]
    energies = energies[order] if energies is not None else None
    best, done, width = np.inf, 0, FIRST
    known: list[Array] = []
    while done < len(rows) and ranks[done] <= best and not (done and stop.reached()):
        part = slice(done, done + width)
        latencies = table.latencies(rows[part])
        known.append(latencies)
        best = min(best, float(objective.rank(latencies, energies[part] if energies is not None else None).min()))
        done += len(latencies)
        width *= 2
    latencies = np.concatenate(known)
    costs = objective.rank(latencies, energies[:done] if energies is not None else None)
    ties = np.flatnonzero(costs == costs.min())
    chosen = int(ties[_among_equals(table, rows[ties])])
    plan = space.plan(space.mapping(int(rows[chosen])))
    complete = done == len(rows) or bool(ranks[done] > best)
    bound = _bound(latencies, bounds[done:], least) if objective.weighs_energy or not complete else plan.latency_fs
    return Choice(plan, min(bound, plan.latency_fs), complete, done, table.size)


def _bound(examined: Array, others: Array, least: int) -> int:
    """The least latency of the examined and of all others by their bounds."""
    return max(least, min(int(examined.min()), int(others.min()) if len(others) else int(examined.min())))


def _among_equals(table: Table, rows: Array) -> int:
    """Of rows of equal cost the one of least energy, then least traffic, then the first."""
    energies = table.energies(rows) if len(rows) > 1 else None
    traffic = table.traffic(rows)
    keys = [rows, traffic] + ([energies] if energies is not None else [])
    return int(np.lexsort(keys)[0])


def nothing_fits(have: dict[str, int], name: str, needs: dict[str, Array]) -> CapacityError:
    """The error that names the memory and the missing bytes of the mapping that misses least."""
    pads = list(needs)
    missing = np.stack([needs[pad] - have[pad] for pad in pads])
    row = int(missing.max(axis=0).argmin())
    pad = pads[int(missing[:, row].argmax())]
    return _too_small(have, name, pad, int(needs[pad][row]))


def _too_small(have: dict[str, int], name: str, pad: str, need: int) -> CapacityError:
    room = have[pad]
    return CapacityError(
        f"operator {name!r}: no mapping fits: the smallest needs {need} B in {pad!r}, which holds {room} B ({need - room} B short)"
    )


def _search_one_by_one(costs: Costs, have: dict[str, int], name: str, objective: Objective, stop: Stop, known: Choice | None) -> Choice:
    space = costs.space
    fitting: list[tuple[Any, int, int]] = []
    closest: tuple[int, str, int] | None = None
    for index, mapping in enumerate(costs.candidates):
        short = [(need - have[pad], pad, need) for pad, need in costs.footprint(index).items() if need > have[pad]]
        if short:
            worst = max(short)
            closest = worst if closest is None else min(closest, worst)
        else:
            bound = costs.bound(index)
            fitting.append((_least_cost(space, mapping, bound, objective), bound, index))
    if known is None and not fitting:
        assert closest is not None
        raise _too_small(have, name, closest[1], closest[2])
    fitting.sort()
    best, best_key = (known.plan, (*objective.key(space, known.plan), -1)) if known else (None, ())
    fastest = known.bound_fs if known else None
    examined, complete = 0, True
    for cost, bound, index in fitting:
        if best is not None and cost > best_key[0]:
            break
        if best is not None and stop.reached():
            complete = False
            fastest = min(bound, fastest or bound)
            break
        plan = costs.plan(index)
        examined += 1
        fastest = plan.latency_fs if fastest is None else min(fastest, plan.latency_fs)
        if best is not None and not objective.weighs_energy and plan.latency_fs > best.latency_fs:
            continue
        key = (*objective.key(space, plan), index)
        if best is None or key < best_key:
            best, best_key = plan, key
    assert best is not None
    assert fastest is not None
    if objective.weighs_energy and fitting:
        fastest = min(fastest, *(bound for _, bound, _ in fitting))
    if known is None:
        return Choice(best, fastest, complete, examined, len(costs.candidates))
    return Choice(best, fastest, complete and known.proven, examined + known.examined, len(costs.candidates) + known.space)


def _least_cost(space: Space, mapping: OperatorMapping, bound_fs: int, objective: Objective) -> Any:
    """What the first thing to minimise cannot be below."""
    if not objective.weighs_energy:
        return bound_fs
    least = getattr(space, "least_energy_pj", None)
    return bound_fs * (least(mapping) if least else 0)
