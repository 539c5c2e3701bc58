"""Attention whose scores go through main memory: for chips too small to keep a block of queries with all of its elements.

Scores of a block of queries are computed block by block, from slabs of queries and keys, and stored with running maxima and sums
kept on the chip; then they come back, become probabilities and meet the values, slab by slab. That is two tiled products: with a
capacity of S words, fewer than the square of the head dimension d, about N^2 d / sqrt(S) words move for N queries and keys, where
streaming attention (`Flash`) would have to move N^2 d^2 / S.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

from hw.quantity import FS_PER_S
from hw.work import Gemm, Vector
from mapper.mapping import OperatorMapping
from mapper.pipeline import Job, Loop, Tile, Tiles
from mapper.plan import Plan, pieces, tile_sizes

if TYPE_CHECKING:
    from mapper.attention import Blocks, Flash
    from mapper.target import Target

LARGEST = 256
"""Query positions, keys and elements of a block, at most: larger ones are for chips on which scores need not leave."""

SMALLEST = 4

LAGS = (0, 1, 2, 3, 4)
"""Load, scores, vector work, values, store."""


@dataclass(frozen=True)
class Scored:
    """Attention in two products. Parameters: `q` query positions, `k` keys and `d` elements of the heads per block."""

    flash: Flash

    @property
    def target(self) -> Target:
        return self.flash.target

    @property
    def blocks(self) -> Blocks:
        return self.flash.blocks

    @property
    def placement(self) -> tuple[str, str]:
        return self.flash.placement

    @cached_property
    def op(self) -> Any:
        return self.flash.kernel.operator

    @cached_property
    def sums(self) -> int:
        """Bytes of one score in main memory: a sum as the unit makes it."""
        return self.target.unit(self.flash.unit).accumulator_bytes()

    @cached_property
    def per_element(self) -> tuple[Fraction, Fraction, Fraction, Fraction]:
        """Bytes per element of a query position, of a key, of a value and of a position's output, for one key/value head."""
        b, op = self.blocks, self.op
        if len(b.cached) == 1:
            key = value = b.key_size / op["head_dim"]
        else:
            whole = sum((o.size for o in b.cached), Fraction(0))
            key = b.key_size * b.cached[0].size / whole / op["head_dim"]
            value = b.key_size * b.cached[1].size / whole / op["value_dim"]
        return b.row_size / op["head_dim"], key, value, b.out_size / op["value_dim"]

    def candidates(self) -> Iterator[OperatorMapping]:
        keys = min(self.op["keys"], self.blocks.keys_of(0, self.op["queries"]))
        for q in [q for q in self.blocks.query_blocks() if q <= LARGEST] or [self.op["queries"]]:
            for k in _sizes(keys):
                for d in _sizes(max(self.op["head_dim"], self.op["value_dim"])):
                    yield OperatorMapping(self.flash.kernel.name, self.flash.unit, "scored", {"q": q, "k": k, "d": d})

    def _shape(self, mapping: OperatorMapping) -> tuple[int, int, int]:
        return min(mapping.integer("q"), self.op["queries"]), min(mapping.integer("k"), self.op["keys"]), mapping.integer("d")

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        """Two slabs of queries; two of keys or four of values, which wait for probabilities; scores from the product to the store, or
        from the load to the probabilities and those twice, with the output twice; maxima and sums of all rows."""
        q, k, d = self._shape(mapping)
        rows = q * self.blocks.group
        query, key, value, _ = self.per_element
        head, out = min(d, self.op["head_dim"]), min(d, self.op["value_dim"])
        width = max(1, ceil(self.blocks.query.format.bits / 8))
        first = 4 * rows * k * self.sums
        second = rows * k * (3 * self.sums + 2 * width) + 2 * rows * out * self.sums
        needs: dict[str, int] = {}
        for operand, size in (
            ("activations", ceil(2 * q * head * query)),
            ("weights", ceil(max(2 * k * head * key, 4 * k * out * value))),
            ("outputs", max(first, second) + 2 * rows * self.sums),
        ):
            pad, _ = self.target.pad_capacity(operand, self.flash.unit)
            needs[pad] = needs.get(pad, 0) + size
        return needs

    def bound(self, mapping: OperatorMapping) -> int:
        """Products of whole blocks, or total traffic."""
        q, k, d = self._shape(mapping)
        op, unit = self.op, self.target.unit(self.flash.unit)
        query, key, value, out = self.per_element
        total, whole = self._keys(q, k)
        rows = q * self.blocks.group
        slabs, out_slabs = ceil(op["head_dim"] / d), ceil(op["value_dim"] / d)
        each = sum(count * unit.cycles(self._gemm(rows, k, e)) for e, count in pieces(op["head_dim"], d))
        each += sum(count * unit.cycles(self._gemm(rows, e, k)) for e, count in pieces(op["value_dim"], d))
        compute = each * whole * self.blocks.heads * FS_PER_S // self.target.device.unit_clock(self.flash.unit)
        if self.target.private_interfaces or self.target.excludes_cold_fill:
            return compute
        scores = sum(r * n for r, n in self.blocks.rows_and_keys(q)) * self.blocks.group * self.sums
        again = sum(r * ceil(n / k) for r, n in self.blocks.rows_and_keys(q)) if slabs > 1 else op["queries"]
        size = again * op["head_dim"] * query + total * (op["head_dim"] * key + op["value_dim"] * value)
        size += op["queries"] * op["value_dim"] * out + scores * (1 + out_slabs)
        return max(compute, self.target.memory.least_fs(size * self.blocks.heads))

    def _keys(self, q: int, k: int) -> tuple[int, int]:
        """Keys of all blocks of queries together, and how many whole blocks of whole rows they make."""
        ranges = self.blocks.rows_and_keys(q)
        return sum(keys for _, keys in ranges), sum(keys // k for rows, keys in ranges if rows == q)

    def _gemm(self, m: int, n: int, k: int, opens: bool = False, closes: bool = False, done: int = 0) -> Gemm:
        return Gemm(m, n, k, self.placement[1], opens, closes, cold=False, final=closes, accumulated=done if closes and not opens else 0)

    def plan(self, mapping: OperatorMapping) -> Plan:
        q, k, d = self._shape(mapping)
        body: Tiles = ()
        made: dict[tuple[int, int], Tiles] = {}
        for rows, keys in self.blocks.rows_and_keys(q):
            if (rows, keys) not in made:
                made[rows, keys] = self._scores(rows, keys, k, d) + self._values(rows, keys, k, d)
            body += made[rows, keys]
        tiles: Tiles = (Loop(self.blocks.heads, body),) if self.blocks.heads > 1 else body
        untimed = self.target.main if self.target.excludes_cold_fill else ""
        return Plan(mapping, tiles, LAGS, self.footprint(mapping), self.target.setup(), untimed)

    def _scores(self, rows: int, keys: int, k: int, d: int) -> Tiles:
        """Scores of a block of queries; then as many steps as the last of them need to be in main memory."""
        dim = self.op["head_dim"]
        slabs = [size for size, count in pieces(dim, d) for _ in range(count)]
        out: Tiles = ()
        for index, (size, count) in enumerate(pieces(keys, k)):
            block = tuple(self._score_tile(rows, size, s, slabs, again=len(slabs) > 1) for s in range(len(slabs)))
            if index == 0 and len(slabs) == 1:
                out += (self._score_tile(rows, size, 0, slabs, again=True),)
                count -= 1
            out += (Loop(count, block),) if count > 1 else block * count
        return out + (((), (), (), (), ()),) * LAGS[-1]

    def _score_tile(self, rows: int, keys: int, s: int, slabs: list[int], again: bool) -> Tile:
        target, m = self.target, rows * self.blocks.group
        query, key, _, _ = self.per_element
        opens, closes = s == 0, s == len(slabs) - 1
        load: tuple[Job, ...] = (target.transfer("load k", "weights", read=keys * slabs[s] * key),)
        if again:
            load += (target.transfer("load q", "activations", read=rows * slabs[s] * query),)
        work = self._gemm(m, keys, slabs[s], opens, closes, sum(slabs[:-1]))
        if not closes:
            return load, (target.multiply("q k", self.flash.unit, work),), (), (), ()
        running = (target.vector("maxima and sums", self.flash.vector, [Vector(m * keys, 3, 1)]),)
        store = (target.transfer("store scores", "outputs", written=m * keys * self.sums),)
        return load, (target.multiply("q k", self.flash.unit, work),), running, (), store

    def _values(self, rows: int, keys: int, k: int, d: int) -> Tiles:
        out: Tiles = ()
        for slab, slabs in pieces(self.op["value_dim"], d):
            blocks = [size for size, count in pieces(keys, k) for _ in range(count)]
            one: Tiles = (self._value_tile(rows, blocks[0], slab, True, len(blocks) == 1, 0),)
            if len(blocks) > 2:
                middle = self._value_tile(rows, blocks[1], slab, False, False, 0)
                one += (Loop(len(blocks) - 2, (middle,)),) if len(blocks) > 3 else (middle,)
            if len(blocks) > 1:
                one += (self._value_tile(rows, blocks[-1], slab, False, True, keys - blocks[-1]),)
            out += (Loop(slabs, one),) if slabs > 1 else one
        return out

    def _value_tile(self, rows: int, keys: int, slab: int, first: bool, last: bool, done: int) -> Tile:
        target, m = self.target, rows * self.blocks.group
        _, _, value, out = self.per_element
        load = (
            target.transfer("load scores", "activations", read=m * keys * self.sums),
            target.transfer("load v", "weights", read=keys * slab * value),
        )
        weigh = (target.vector("softmax", self.flash.vector, [Vector(m * keys, 2, 1)]),)
        work = self._gemm(m, slab, keys, first, last, done)
        store = (target.transfer("store o", "outputs", written=rows * slab * out),) if last else ()
        return load, (), weigh, (target.multiply("p v", self.flash.unit, work),), store


def _sizes(size: int) -> list[int]:
    return [s for s in tile_sizes(size, SMALLEST) if s <= LARGEST] or [size]
