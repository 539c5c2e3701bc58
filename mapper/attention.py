"""Attention as a stream of key blocks per block of queries, with online softmax: scores never leave the chip.

Query heads that share keys and values are processed together: a block of q positions is a block of q x group rows.
`Blocks` is the arithmetic common to all devices; `Flash` maps it onto a matrix unit and a vector unit with scratchpads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

from hw.memory import Pieces
from hw.quantity import FS_PER_S
from hw.work import Gemm, Vector
from mapper.kernels import Kernel, Operand
from mapper.mapping import OperatorMapping
from mapper.matrix import OnMatrixUnit
from mapper.pipeline import Job, Loop, Tile, Tiles
from mapper.plan import Plan, pieces, tile_sizes
from mapper.scored import Scored
from mapper.target import Target
from workloads.cost import attended_keys
from workloads.format import Format

MOST_BLOCKS = 4096
"""Blocks of query positions that follow each other, at most: with a causal mask each is a stream of its own length."""

SMALLEST_KEYS = 4
"""Keys per block, at least."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of one attention kernel."""

    kernel: Kernel

    @cached_property
    def heads(self) -> int:
        """Independent streams: sequences times key/value heads."""
        return self.kernel.operator["batch"] * self.kernel.operator["kv_heads"]

    @cached_property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.kernel.operator["heads"] // self.kernel.operator["kv_heads"]

    @cached_property
    def query(self) -> Operand:
        return self.kernel.input(0)

    @cached_property
    def cached(self) -> tuple[Operand, ...]:
        """Keys and values (or the one latent that is both)."""
        names = self.kernel.operator.inputs[1:3]
        return tuple(o for o in self.kernel.reads if o.tensor in names)

    @cached_property
    def key_size(self) -> Fraction:
        """Bytes of one key with its value, per key/value head."""
        return sum((o.size for o in self.cached), Fraction(0)) / (self.heads * attended_keys(self.kernel.operator))

    @cached_property
    def row_size(self) -> Fraction:
        """Bytes read per query position of a stream, everything but keys and values."""
        names = {o.tensor for o in self.cached}
        size = sum((o.size for o in self.kernel.reads if o.tensor not in names), Fraction(0))
        return size / (self.heads * self.kernel.operator["queries"])

    @cached_property
    def out_size(self) -> Fraction:
        """Bytes written per query position of a stream."""
        return sum((o.size for o in self.kernel.writes), Fraction(0)) / (self.heads * self.kernel.operator["queries"])

    def pieces(self, rows: int, size: Fraction) -> Pieces | None:
        """How `size` bytes for each of so many query positions lie in main memory: between them are those of the other heads."""
        heads = self.kernel.operator["kv_heads"]
        return Pieces(size, size * heads) if rows > 1 and heads > 1 else None

    def keys_of(self, start: int, rows: int) -> int:
        """Keys that the query positions [start, start + rows) attend to, together."""
        op = self.kernel.operator
        past = op["keys"] - op["queries"]
        last = past + start + rows if op["causal"] else op["keys"]
        first = max(0, past + start - op["window"] + 1) if op["window"] and op["causal"] else 0
        return last - first

    def query_blocks(self) -> list[int]:
        """Query positions per block to consider: doublings, of which no more than `MOST_BLOCKS` blocks follow each other."""
        queries = self.kernel.operator["queries"]
        return [q for q in tile_sizes(queries, 1) if ceil(queries / q) <= MOST_BLOCKS]

    def pieces_of(self, block: int, keys: int) -> dict[tuple[int, int], int]:
        """How many products of (query positions, keys) blocks of so many query positions and keys make."""
        counts: dict[tuple[int, int], int] = {}
        for rows, total in self.rows_and_keys(block):
            for piece, count in pieces(total, keys):
                counts[rows, piece] = counts.get((rows, piece), 0) + count
        return counts

    @cached_property
    def _blocks(self) -> dict[int, list[tuple[int, int]]]:
        return {}

    def rows_and_keys(self, block: int) -> list[tuple[int, int]]:
        """(query positions, keys) of every block of queries."""
        if block not in self._blocks:
            queries = self.kernel.operator["queries"]
            self._blocks[block] = [(min(block, queries - s), self.keys_of(s, min(block, queries - s))) for s in range(0, queries, block)]
        return self._blocks[block]


@dataclass(frozen=True)
class Flash(OnMatrixUnit):
    """Attention on scratchpads. Parameters: `q` query positions and `k` keys per block."""

    target: Target
    kernel: Kernel

    @cached_property
    def blocks(self) -> Blocks:
        return Blocks(self.kernel)

    @property
    def multiplied(self) -> tuple[Format, Format]:
        return self.blocks.query.format, self.blocks.cached[-1].format

    @cached_property
    def vector(self) -> str:
        return self.target.vector_unit(self.kernel.name)

    def candidates(self) -> Iterator[OperatorMapping]:
        op = self.kernel.operator
        for q in self.blocks.query_blocks():
            for k in tile_sizes(min(op["keys"], self.blocks.keys_of(0, op["queries"])), SMALLEST_KEYS):
                if q * self.blocks.group * k <= 2**22:
                    yield OperatorMapping(self.kernel.name, self.unit, "flash", {"q": q, "k": k})

    @cached_property
    def others(self) -> tuple[Scored, ...]:
        """Further families of mappings of the same kernel; one query has no scores to spare."""
        return (Scored(self),) if self.kernel.operator["queries"] > 1 else ()

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        """Two blocks of queries; keys for two steps and values for four, as softmax runs in between; scores, probabilities
        and the running output twice."""
        op, b = self.kernel.operator, self.blocks
        q, k = min(mapping.integer("q"), op["queries"]), min(mapping.integer("k"), op["keys"])
        rows = q * b.group
        width = max(1, ceil(b.query.format.bits / 8))
        sums = self.target.unit(self.unit).accumulator_bytes()
        needs: dict[str, int] = {}
        for operand, size in (
            ("activations", 2 * ceil(q * b.row_size)),
            ("weights", ceil(4 * k * b.key_size)),
            ("outputs", 2 * rows * k * (sums + width) + 2 * rows * op["value_dim"] * sums),
        ):
            pad, _ = self.target.pad_capacity(operand, self.unit)
            needs[pad] = needs.get(pad, 0) + size
        return needs

    def bound(self, mapping: OperatorMapping) -> int:
        """Total matrix time, or total traffic."""
        op, unit = self.kernel.operator, self.target.unit(self.unit)
        q, k = mapping.integer("q"), mapping.integer("k")
        cycles, size = 0, Fraction(0)
        for (rows, keys), count in self.blocks.pieces_of(min(q, op["queries"]), k).items():
            cycles += count * sum(unit.cycles(work) for work in self._works(rows, keys, final=False))
            size += count * keys * self.blocks.key_size
        size += op["queries"] * (self.blocks.row_size + self.blocks.out_size)
        compute = cycles * self.blocks.heads * FS_PER_S // self.target.device.unit_clock(self.unit)
        if self.target.private_interfaces or self.target.excludes_cold_fill:
            return compute
        return max(compute, self.target.memory.least_fs(size * self.blocks.heads))

    def _works(self, rows: int, keys: int, final: bool) -> tuple[Gemm, Gemm]:
        op, m = self.kernel.operator, rows * self.blocks.group
        scores = Gemm(m, keys, op["head_dim"], self.placement[1], cold=False, final=False)
        return scores, Gemm(m, op["value_dim"], keys, self.placement[1], cold=False, final=final)

    def plan(self, mapping: OperatorMapping) -> Plan:
        op = self.kernel.operator
        q, k = mapping.integer("q", op["queries"]), mapping.integer("k", op["keys"])
        body: Tiles = ()
        made: dict[tuple[int, int], Tiles] = {}
        for rows, keys in self.blocks.rows_and_keys(q):
            if (rows, keys) not in made:
                made[rows, keys] = self._stream(rows, keys, k)
            body += made[rows, keys]
        tiles: Tiles = (Loop(self.blocks.heads, body),) if self.blocks.heads > 1 else body
        untimed = self.target.main if self.target.excludes_cold_fill else ""
        return Plan(mapping, tiles, (0, 1, 2, 3, 4), self.footprint(mapping), self.target.setup(), untimed)

    def _stream(self, rows: int, keys: int, block: int) -> Tiles:
        """The tiles of one block of queries: the first also loads them, the last also writes their result."""
        whole, rest = divmod(keys, block)
        blocks = whole + (rest > 0)
        if blocks == 1:
            return (self._tile(rows, rest or block, first=True, last=True),)
        out: Tiles = (self._tile(rows, block, first=True, last=False),)
        if blocks > 2:
            middle = self._tile(rows, block, first=False, last=False)
            out += (Loop(blocks - 2, (middle,)),) if blocks > 3 else (middle,)
        return (*out, self._tile(rows, rest or block, first=False, last=True))

    @cached_property
    def _made(self) -> dict[tuple[int, int, bool, bool], Tile]:
        return {}

    def _tile(self, rows: int, keys: int, first: bool, last: bool) -> Tile:
        key = (rows, keys, first, last)
        if key not in self._made:
            self._made[key] = self._written(*key)
        return self._made[key]

    def _written(self, rows: int, keys: int, first: bool, last: bool) -> Tile:
        b, target, op = self.blocks, self.target, self.kernel.operator
        load: tuple[Job, ...] = (target.transfer("load k, v", "weights", read=keys * b.key_size),)
        if first:
            load += (target.transfer("load q", "activations", read=rows * b.row_size, pieces=b.pieces(rows, b.row_size)),)
        scores, values = self._works(rows, keys, final=True)
        softmax = [Vector(scores.m * keys, 4, 1), Vector(scores.m * op["value_dim"], 2)]
        store: tuple[Job, ...] = ()
        if last:
            store = (target.transfer("store o", "outputs", written=rows * b.out_size, pieces=b.pieces(rows, b.out_size)),)
        return (
            load,
            (target.multiply("q k", self.unit, scores),),
            (target.vector("softmax", self.vector, softmax),),
            (target.multiply("p v", self.unit, values),),
            store,
        )
