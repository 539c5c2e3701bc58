"""Choosing a mapping: exact costs for the candidates that a bound cannot rule out.

The space of a kernel depends on its shape and the unit only, never on capacities, bandwidths or clocks, and the candidate
with the least exact latency is always found. Relaxing any of them can therefore never make the result worse.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from mapper.errors import CapacityError, MappingError
from mapper.mapping import OperatorMapping
from mapper.plan import Plan
from mapper.target import Target


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


def replay(space: Space, mapping: OperatorMapping) -> Plan:
    """The plan of a given mapping. Raises `MappingError` when it names another unit or kind of loop nest, `CapacityError`
    when a buffer is too small."""
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


def search(space: Space, name: str) -> Plan:
    """The plan of least latency; among equals the one that moves fewest bytes, then the first of the space.

    Raises `CapacityError` when no mapping fits, naming the memory and the missing bytes of the one that misses least.
    """
    memories = space.target.device.memories
    if isinstance(space, Ranked) and (known := space.best({name: memory.capacity for name, memory in memories.items()})):
        plans = [space.plan(mapping) for mapping in known]
        return min(plans, key=lambda plan: (plan.latency_fs, plan.traffic(space.target.main)))
    fitting: list[tuple[int, int, OperatorMapping]] = []
    closest: tuple[int, str, int] | None = None
    for index, mapping in enumerate(space.candidates()):
        needs = space.footprint(mapping).items()
        short = [(need - memories[pad].capacity, pad, need) for pad, need in needs if need > memories[pad].capacity]
        if short:
            worst = max(short)
            closest = worst if closest is None else min(closest, worst)
        else:
            fitting.append((space.bound(mapping), index, mapping))
    if not fitting:
        assert closest is not None
        missing, pad, need = closest
        raise CapacityError(
            f"operator {name!r}: no mapping fits: the smallest needs {need} B in {pad!r}, which holds "
            f"{memories[pad].capacity} B ({missing} B short)"
        )
    best: Plan | None = None
    best_key: tuple[int, int, int] | None = None
    for bound, index, mapping in sorted(fitting, key=lambda entry: entry[:2]):
        if best_key is not None and bound > best_key[0]:
            break
        plan = space.plan(mapping)
        if best_key is not None and plan.latency_fs > best_key[0]:
            continue
        key = (plan.latency_fs, plan.traffic(space.target.main), index)
        if best_key is None or key < best_key:
            best, best_key = plan, key
    assert best is not None
    return best
