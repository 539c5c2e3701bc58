"""Vector work and data movement on a device with scratchpads: chunks through load, compute and store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

from hw.work import Vector
from mapper.kernels import Kernel
from mapper.mapping import OperatorMapping
from mapper.pipeline import Job, Loop, Tile, Tiles
from mapper.plan import Plan, tile_sizes
from mapper.target import Target
from mapper.vectorwork import of_kernel, share

SMALLEST = 1024
"""Elements of the smallest chunk considered."""


@dataclass(frozen=True)
class Stream:
    """One elementwise, normalising, gathering or copying kernel. Parameter `chunk`: elements per tile."""

    target: Target
    kernel: Kernel

    @cached_property
    def work(self) -> tuple[Vector, ...]:
        return of_kernel(self.kernel)

    @cached_property
    def unit(self) -> str:
        """The vector unit; the main memory itself when nothing is computed."""
        return self.target.vector_unit(self.kernel.name) if self.work else self.target.main

    @cached_property
    def elements(self) -> int:
        return max([ceil(o.elements) for o in (*self.kernel.reads, *self.kernel.writes)] + [w.elements for w in self.work] + [1])

    @cached_property
    def read_size(self) -> Fraction:
        return sum((o.size for o in self.kernel.reads), Fraction(0))

    @cached_property
    def write_size(self) -> Fraction:
        return sum((o.size for o in self.kernel.writes), Fraction(0))

    def candidates(self) -> Iterator[OperatorMapping]:
        for chunk in tile_sizes(self.elements, SMALLEST):
            yield OperatorMapping(self.kernel.name, self.unit, "stream", {"chunk": chunk})

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        pad = self.target.device.scratchpad("outputs", self.unit)
        if pad is None:
            return {}
        chunk = min(mapping.integer("chunk"), self.elements)
        copies = 2 if chunk < self.elements else 1
        return {pad: ceil((self.read_size + self.write_size) * chunk / self.elements) * copies}

    def bound(self, mapping: OperatorMapping) -> int:
        if self.target.private_interfaces or self.target.excludes_cold_fill:
            return 0
        return self.target.memory.least_fs(self.read_size + self.write_size)

    def plan(self, mapping: OperatorMapping) -> Plan:
        chunk = mapping.integer("chunk", self.elements)
        whole, rest = divmod(self.elements, chunk)
        tiles: Tiles = (Loop(whole, (self._tile(chunk),)),) if whole > 1 else (self._tile(chunk),)
        if rest:
            tiles += (self._tile(rest),)
        untimed = self.target.main if self.target.excludes_cold_fill and self.work else ""
        return Plan(mapping, tiles, (0, 1, 2), self.footprint(mapping), self.target.setup(), untimed)

    def _tile(self, part: int) -> Tile:
        portion = Fraction(part, self.elements)
        load: tuple[Job, ...] = ()
        if self.read_size:
            load = (self.target.transfer("load", "activations", read=self.read_size * portion),)
        compute: tuple[Job, ...] = ()
        if self.work:
            compute = (self.target.vector("compute", self.unit, [share(w, part, self.elements) for w in self.work]),)
        store: tuple[Job, ...] = ()
        if self.write_size:
            store = (self.target.transfer("store", "outputs", written=self.write_size * portion),)
        return load, compute, store
