"""Kernels on streaming units near memory: one mapping, in which the right operand streams past vectors that wait in buffers.

The vectors arrive over the memory's interface, a copy for every stack; then the right operand (weights, keys and values) is read
over the units' own way while modules multiply and the vector units behind them work (activation, softmax), in `SLICES` slices of
outputs or heads; results leave over the own way. The controller of the memory starts the kernel: there is no launch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

from hw.quantity import cycles_to_fs
from hw.units.near_pim import NearUnit
from hw.work import Vector
from mapper.kernels import Operand
from mapper.mapping import OperatorMapping
from mapper.pipeline import Job, Loop, Tile, Tiles
from mapper.plan import Plan
from mapper.program import Move
from mapper.sited import Sited
from mapper.vectorwork import of_operator
from workloads import cost
from workloads.cost import attended_pairs
from workloads.experts import tokens_of

FAMILY = "bundles"
SLICES = 8
"""Slices of outputs or heads that follow each other through reading, vector work and writing, at most."""


@dataclass(frozen=True)
class Near(Sited):
    """The one mapping of a kernel onto near-memory modules; it has no parameters."""

    @cached_property
    def unit(self) -> NearUnit:
        unit = self.target.unit(self.name)
        assert isinstance(unit, NearUnit)
        return unit

    @cached_property
    def streamed(self) -> tuple[Operand, ...]:
        """The right operand: keys and values, or weights."""
        op = self.kernel.operator
        names = op.inputs[1:3] if self.kernel.kind == "attention" else op.inputs[1:2]
        return tuple(o for o in self.kernel.reads if o.tensor in names)

    @cached_property
    def waiting(self) -> tuple[Operand, ...]:
        """Queries, or the rows of the left operand."""
        stays = {o.tensor for o in self.streamed}
        return tuple(o for o in self.kernel.reads if o.tensor == self.kernel.operator.inputs[0] and o.tensor not in stays)

    @property
    def _heads(self) -> int:
        """Streams of attention: sequences times key/value heads."""
        return self.kernel.operator["batch"] * self.kernel.operator["kv_heads"]

    @cached_property
    def uneven(self) -> Fraction:
        """The load of the busiest stack over the mean: heads of attention are whole."""
        if self.kernel.kind != "attention":
            return Fraction(1)
        return Fraction(ceil(self._heads / self.unit.stacks) * self.unit.stacks, self._heads)

    @cached_property
    def passes(self) -> int:
        """How often the right operand streams by: the vectors of one head, or all rows of a product, share the buffer of a stack."""
        vectors = sum((o.size for o in self.waiting), Fraction(0))
        if self.kernel.kind == "attention":
            return self.unit.passes(ceil(vectors / self._heads))
        return self.unit.passes(ceil(vectors))

    def candidates(self) -> Iterator[OperatorMapping]:
        yield OperatorMapping(self.kernel.name, self.name, FAMILY, {})

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        return {}

    def bound(self, mapping: OperatorMapping) -> int:
        size = sum((o.size for o in self.streamed), Fraction(0))
        return self.target.memory.occupied_fs(size * (1 if self.kernel.kind == "grouped_matmul" else self.passes))

    def plan(self, mapping: OperatorMapping) -> Plan:
        op = self.kernel.operator
        if self.kernel.kind == "grouped_matmul":
            tiles = self._experts()
        else:
            slices = min(SLICES, self._heads if self.kernel.kind == "attention" else op["n"])
            part = Fraction(1, slices)
            tiles = (self._tile(part, part, self.passes, self._load()),)
            if slices > 1:
                tiles += (Loop(slices - 1, (self._tile(part, part, self.passes, ()),)),)
        latency = self.target.memory.latency
        setup = (("first access", latency),) if latency else ()
        return Plan(mapping, tiles, (0, 1, 2, 3), {}, setup, notes=(NOTE,))

    def _experts(self) -> Tiles:
        """Experts one after the other, each with its own rows: those with equal numbers of rows follow each other."""
        op = self.kernel.operator
        rows = tokens_of(op)
        vectors = sum((o.size for o in self.waiting), Fraction(0))
        tiles: Tiles = ()
        load = self._load()
        for count, many in Counter(rows).items():
            share, weights = Fraction(count, op["rows"]), Fraction(1, op["active"])
            passes = self.unit.passes(ceil(vectors * share))
            if load:
                tiles, load, many = (self._tile(share, weights, passes, load),), (), many - 1
            if many:
                tile = self._tile(share, weights, passes, ())
                tiles += (Loop(many, (tile,)),) if many > 1 else (tile,)
        return tiles

    def _load(self) -> tuple[Job, ...]:
        """Vectors over the interface into the buffers: one copy for each stack that needs them, by the memory's own rate of writes."""
        whole = self.target.whole
        size = sum((o.size for o in self.waiting), Fraction(0))
        copies = 1 if self.kernel.kind == "attention" else self.unit.stacks
        if not size or whole is None:
            return ()
        fs = whole.dram.occupied_fs(0, size * copies)
        queue = self.target.interface("activations")
        return (Job("vectors", queue, fs, fs, (Move(self.target.main, Fraction(0), size * copies),)),)

    def _tile(self, part: Fraction, weights: Fraction, passes: int, load: tuple[Job, ...]) -> Tile:
        """A `part` of the kernel's work with a share `weights` of the right operand: read and multiply, vector work, results."""
        kernel, target, op = self.kernel, self.target, self.kernel.operator
        size = sum((o.size for o in self.streamed), Fraction(0)) * passes
        read = target.transfer("stream", "weights", read=size * weights)
        fs = ceil(read.fs * self.uneven)
        jobs = [Job(read.name, read.on, fs, fs, read.moves), self._multiply(part)]
        works = [work for fused in kernel.fused for work in of_operator(fused)]
        if kernel.kind == "attention":
            pairs = attended_pairs(op["queries"], op["keys"], bool(op["causal"]), op["window"])
            works.append(Vector(op["batch"] * op["heads"] * pairs, 4, 1))
        after: tuple[Job, ...] = ()
        if works:
            shares = [Vector(ceil(w.elements * self.uneven * part), w.operations, w.specials) for w in works]
            after = (target.vector("compute", target.vector_unit(kernel.name), shares),)
        known = {o.tensor for o in (*self.streamed, *self.waiting)}
        others = sum((o.size for o in kernel.reads if o.tensor not in known), Fraction(0))
        if others:
            after += (target.transfer("load", "activations", read=others * part),)
        written = sum((o.size for o in kernel.writes), Fraction(0))
        store = (target.transfer("store", "outputs", written=written * part, turn=False),) if written else ()
        return load, tuple(jobs), after, store

    def _multiply(self, part: Fraction) -> Job:
        unit, clock = self.unit, self.target.device.unit_clock(self.name)
        macs = cost.macs(self.kernel.operator) * part
        rate = unit.macs_per_cycle(self.format) * unit.count
        cycles = ceil(macs * self.uneven / rate)
        return Job("multiply", self.name, cycles, cycles_to_fs(cycles, clock), macs=macs)


NOTE = (
    "units near memory: vectors are copied to every stack over the interface, weights or keys and values stream over the units' own way "
    "once for each buffer of vectors; power that would limit the cadence of the banks is not modelled"
)
