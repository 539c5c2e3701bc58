"""Collectives between the chips of a node: one mapping, whose time is that of the links."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from mapper.errors import MappingError
from mapper.kernels import Kernel
from mapper.mapping import OperatorMapping
from mapper.pipeline import Job
from mapper.plan import Plan
from mapper.program import Move
from mapper.target import Target

FABRIC = "fabric"
"""The queue of the links between chips."""


@dataclass(frozen=True)
class Collective:
    """An all-reduce or all-gather over the links of a node. The library's kernels start by themselves; the vector is read and written
    in main memory meanwhile."""

    target: Target
    kernel: Kernel

    @cached_property
    def fs(self) -> int:
        node, op = (self.target.whole or self.target.device).node, self.kernel.operator
        if node is None:
            raise MappingError(f"operator {op.name!r}: {self.target.device.name} is one chip, {op.function} needs a node")
        return node.collective_fs(op.function, max(1, ceil(sum(o.size for o in self.kernel.writes[:1]))))

    def candidates(self) -> Iterator[OperatorMapping]:
        yield OperatorMapping(self.kernel.name, FABRIC, "collective", {})

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        return {}

    def bound(self, mapping: OperatorMapping) -> int:
        return self.fs

    def plan(self, mapping: OperatorMapping) -> Plan:
        main = self.target.main
        move = Move(main, sum(ceil(o.size) for o in self.kernel.reads), sum(ceil(o.size) for o in self.kernel.writes))
        moved = min(self.fs, self.target.memory.occupied_fs(move.read, move.written))
        return Plan(mapping, (((Job("exchange", FABRIC, self.fs, self.fs), Job("exchange", main, moved, moved, (move,))),),), (0,))
