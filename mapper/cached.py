"""Kernels behind a last-level cache through which software streams main memory: cores with SIMD, and compute arrays in the cache.

A product goes through its weights once, some columns at a time, for all rows of activations if the cache holds them and for some
rows at a time if not. Attention goes through keys and values head by head, a head per copy of the unit. Copies of a unit share
the columns of a product evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil

from hw.quantity import cycles_to_fs
from hw.units.sail import SailSlices, SimdCores
from hw.work import Gemm, Vector
from mapper.kernels import Operand
from mapper.mapping import OperatorMapping
from mapper.pipeline import Job, Loop, Tile, Tiles
from mapper.plan import Plan, balanced_sizes, pieces, tile_sizes
from mapper.sited import Sited
from mapper.target import converts
from mapper.vectorwork import of_kernel, share
from workloads import cost
from workloads.cost import attended_keys

PRODUCT, ATTENTION = "cached", "cached_attention"
SMALLEST_KEYS = 64
"""Keys per block, at least."""
LAGS = (0, 1, 2, 3)
"""Loads, products, vector work and stores of a tile follow each other."""


@dataclass(frozen=True)
class Cached(Sited):
    """What both kinds of kernels share."""

    @cached_property
    def copies(self) -> int:
        return self.target.unit(self.name).count

    @cached_property
    def pad(self) -> str:
        return self.target.pad_capacity("weights", self.name)[0]

    @cached_property
    def works(self) -> tuple[Vector, ...]:
        return of_kernel(self.kernel)

    def bound(self, mapping: OperatorMapping) -> int:
        size = sum((o.size for o in self.kernel.compulsory), Fraction(0))
        return self.target.memory.least_fs(size) if size else 0

    def job(self, cycles: int, macs: Fraction | int) -> Job:
        return Job("multiply", self.name, cycles, cycles_to_fs(cycles, self.target.device.unit_clock(self.name)), macs=macs)

    def vector(self, portion: Fraction, more: tuple[Vector, ...] = ()) -> tuple[Job, ...]:
        """The portion of the work that is fused behind the products, and more."""
        works = [share(work, portion.numerator, portion.denominator) for work in self.works]
        works += more
        return (self.target.vector("compute", self.target.vector_unit(self.kernel.name), works),) if works else ()


@dataclass(frozen=True)
class CachedProduct(Cached):
    """A product. Parameters: `columns` of the weights and `rows` of activations at a time."""

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """(products with matrices of their own, rows of each, columns, length of the contraction)."""
        op = self.kernel.operator
        if self.kernel.kind == "grouped_matmul":
            return op["active"], ceil(op["rows"] / op["active"]), op["n"], op["k"]
        return op["batch"], op["m"], op["n"], op["k"]

    @cached_property
    def right(self) -> Operand:
        return self.kernel.input(1)

    @cached_property
    def left_size(self) -> Fraction:
        """Bytes of everything that is read beside the weights."""
        return sum((o.size for o in self.kernel.reads if o is not self.right), Fraction(0))

    @cached_property
    def out_size(self) -> Fraction:
        return sum((o.size for o in self.kernel.writes), Fraction(0))

    def candidates(self) -> Iterator[OperatorMapping]:
        _, m, n, _ = self.shape
        block = self.target.unit(self.name).granularity()[1] * self.copies
        for columns in balanced_sizes(n, min(n, block)):
            for rows in tile_sizes(m, 16):
                yield OperatorMapping(self.kernel.name, self.name, PRODUCT, {"columns": columns, "rows": rows})

    def _part(self, mapping: OperatorMapping) -> tuple[int, int]:
        _, m, n, _ = self.shape
        return min(m, mapping.integer("rows")), min(n, mapping.integer("columns"))

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        matrices, m, n, _ = self.shape
        rows, columns = self._part(mapping)
        weights = self.right.size * columns / (n * matrices)
        left = self.left_size * rows / (m * matrices) * (1 if rows == m else 2)
        out = self.out_size * rows * columns / (m * n * matrices)
        return {self.pad: ceil(left + 2 * weights + 2 * out)}

    def plan(self, mapping: OperatorMapping) -> Plan:
        matrices, m, n, _ = self.shape
        rows, columns = self._part(mapping)
        body: Tiles = ()
        for number, (width, count) in enumerate(pieces(n, columns)):
            first = self._block(rows, width, left=number == 0, right=True)
            again = self._block(rows, width, left=rows < m, right=True)
            body += first
            if count > 1:
                body += (Loop(count - 1, again),) if count > 2 else again
        tiles = (Loop(matrices, body),) if matrices > 1 else body
        return Plan(mapping, tiles, LAGS, self.footprint(mapping), self.target.setup())

    def _block(self, rows: int, width: int, left: bool, right: bool) -> tuple[Tile, ...]:
        """All rows against some columns: weights come with the first rows, activations unless they are there."""
        _, m, _, _ = self.shape
        tiles: list[Tile] = []
        for height, count in pieces(m, rows):
            tiles += [self._tile(height, width, left, right and not tiles)]
            tiles += [self._tile(height, width, left, False)] * (count - 1)
        return tuple(tiles)

    def _tile(self, height: int, width: int, left: bool, right: bool) -> Tile:
        matrices, m, n, k = self.shape
        load: list[Job] = []
        if left and self.left_size:
            load.append(self.target.transfer("load a", "activations", read=self.left_size * height / (m * matrices)))
        if right and self.right.size:
            load.append(self.target.transfer("load b", "weights", read=self.right.size * width / (n * matrices)))
        each = Gemm(height, ceil(width / self.copies), k, self.format)
        unit = self.target.unit(self.name)
        cycles = unit.cycles(each)
        if isinstance(unit, SimdCores) and converts(self.format, self.right.format):
            cycles += unit.conversion_cycles(each.n * k)
        compute = (self.job(cycles, height * width * k),)
        portion = Fraction(height * width, m * n * matrices)
        more = (unit.combining(replace(each, n=width)),) if isinstance(unit, SailSlices) else ()
        store: tuple[Job, ...] = ()
        if self.out_size:
            store = (self.target.transfer("store", "outputs", written=self.out_size * portion),)
        return tuple(load), compute, self.vector(portion, more), store


@dataclass(frozen=True)
class CachedAttention(Cached):
    """Attention, a head per copy. Parameter: `keys` at a time; running maxima and sums of a head stay with the copy that works on it."""

    @cached_property
    def heads(self) -> int:
        """Sequences times heads of keys and values."""
        return self.kernel.operator["batch"] * self.kernel.operator["kv_heads"]

    @cached_property
    def keys(self) -> int:
        return attended_keys(self.kernel.operator)

    @cached_property
    def cached_size(self) -> Fraction:
        """Bytes of keys and values."""
        names = self.kernel.operator.inputs[1:3]
        return sum((o.size for o in self.kernel.reads if o.tensor in names), Fraction(0))

    @cached_property
    def row_size(self) -> Fraction:
        """Bytes of queries and of everything else that is read."""
        return sum((o.size for o in self.kernel.reads), Fraction(0)) - self.cached_size

    @cached_property
    def out_size(self) -> Fraction:
        return sum((o.size for o in self.kernel.writes), Fraction(0))

    def candidates(self) -> Iterator[OperatorMapping]:
        for keys in tile_sizes(self.keys, SMALLEST_KEYS):
            yield OperatorMapping(self.kernel.name, self.name, ATTENTION, {"keys": keys})

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        block = Fraction(min(mapping.integer("keys"), self.keys), self.keys)
        share_of_heads = Fraction(min(self.copies, self.heads), self.heads)
        return {self.pad: ceil((self.cached_size * block * 2 + (self.row_size + self.out_size) * 2) * share_of_heads)}

    def plan(self, mapping: OperatorMapping) -> Plan:
        blocks = pieces(self.keys, min(mapping.integer("keys"), self.keys))
        tiles: Tiles = ()
        for heads, count in pieces(self.heads, min(self.copies, self.heads)):
            group: Tiles = ()
            for number, (keys, times) in enumerate(blocks):
                first, last = number == 0, number == len(blocks) - 1
                if times == 1 or not (first or last):
                    group += self._run(heads, keys, times, first, last)
                    continue
                middle = times - first - last
                group += self._run(heads, keys, int(first), True, False)
                group += self._run(heads, keys, middle, False, False)
                group += self._run(heads, keys, int(last), False, True)
            tiles += (Loop(count, group),) if count > 1 else group
        return Plan(mapping, tiles, LAGS, self.footprint(mapping), self.target.setup())

    def _run(self, heads: int, keys: int, times: int, first: bool, last: bool) -> Tiles:
        """Equal blocks one after the other."""
        tile = self._tile(heads, keys, first, last)
        return (Loop(times, (tile,)),) if times > 1 else (tile,) * times

    def _tile(self, heads: int, keys: int, first: bool, last: bool) -> Tile:
        """A block of keys of a head on each copy; the queries come with the first, the results go with the last."""
        op, unit = self.kernel.operator, self.target.unit(self.name)
        rows = op["heads"] // op["kv_heads"] * op["queries"]
        pairs = cost.attended_pairs(op["queries"], op["keys"], bool(op["causal"]), op["window"])
        seen = Fraction(pairs, op["queries"] * self.keys)  # of the products of all queries with all keys
        whole = unit.cycles(Gemm(rows, keys, op["head_dim"], self.format)) + unit.cycles(Gemm(rows, op["value_dim"], keys, self.format))
        portion = Fraction(heads, self.heads)
        part = portion * Fraction(keys, self.keys)
        softmax = Vector(ceil(heads * (op["heads"] // op["kv_heads"]) * Fraction(pairs * keys, self.keys)), 4, 1)
        store: tuple[Job, ...] = ()
        if last and self.out_size:
            store = (self.target.transfer("store", "outputs", written=self.out_size * portion),)
        return (
            (self.target.transfer("load", "activations", read=self.cached_size * part + (self.row_size * portion if first else 0)),),
            (self.job(ceil(whole * seen), cost.macs(op) * part),),
            self.vector(part, (softmax,)),
            store,
        )
