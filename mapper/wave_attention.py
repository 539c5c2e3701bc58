"""Attention on a GPU: thread blocks of queries, or of parts of the keys, on streaming multiprocessors (SMs) behind a cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

from hw.quantity import cycles_to_fs
from hw.units.tensor_core import SLICE, TensorCore
from hw.work import Vector
from mapper.attention import Blocks
from mapper.mapping import OperatorMapping
from mapper.matrix import OnMatrixUnit
from mapper.pipeline import Job
from mapper.plan import Plan, tile_sizes
from mapper.waves import SUM_BYTES, Wave
from workloads.format import Format

FEW_QUERIES = 64
"""Query positions with a past below which attention runs as in decoding."""

SOFTMAX_OPERATIONS = 6
"""Per score, beside the exponential: mask, scale, running maximum, subtraction, sum, conversion to the operands' format."""

MOST_SPLITS = 256
"""Parts of the keys that different thread blocks work on, at most; fewer where the operator states `splits`."""

SPLITS = sorted(n << i for n in (1, 3) for i in range(9) if n << i <= MOST_SPLITS)
"""Numbers of parts that are tried: libraries take the least number that fills the SMs, not powers of two alone."""

LOADS = 2
"""Keys and values of few queries: a thread block waits for each, once per block of keys, unless loads run ahead of it (bulk copies
by the memory accelerator that clusters of thread blocks come with)."""

LEAST_ROWS = 8
"""Rows of queries of a matrix instruction, at least: fewer are padded."""

DEPENDENT_STEPS = 3
"""Scores, softmax and values of a block of keys wait for each other."""


@dataclass(frozen=True)
class WaveAttention(OnMatrixUnit, Wave):
    """Attention in thread blocks, each with a block of queries of one key/value head and a `split`th of its keys.

    Parameters: `q` query positions, query `heads` and `k` keys per block, `split`. Blocks of fewer heads than share the keys
    read them from the cache once per block. A block's scores, softmax and values follow each other: matrix and vector units
    take turns.
    """

    @cached_property
    def blocks(self) -> Blocks:
        return Blocks(self.kernel)

    @property
    def multiplied(self) -> tuple[Format, Format]:
        return self.blocks.query.format, self.blocks.cached[-1].format

    @cached_property
    def core(self) -> TensorCore:
        return self.tensor_core

    @cached_property
    def few(self) -> bool:
        """Whether heads that share keys are packed into a block and keys split between blocks: one query, or few with a past; not in
        kernels of prompts (`prompt`), however short these are."""
        op = self.kernel.operator
        if op.attributes.get("prompt", 0):
            return False
        return op["queries"] == 1 or (op["queries"] < FEW_QUERIES and op["keys"] > op["queries"])

    def candidates(self) -> Iterator[OperatorMapping]:
        op, group = self.kernel.operator, self.blocks.group
        if not self.few:
            for q in (64, 128):
                for k in (64, 128):
                    yield OperatorMapping(self.kernel.name, self.unit, "wave", {"q": q, "heads": 1, "k": k, "split": 1})
            return
        heads = [h for h in (group >> i for i in range(group.bit_length())) if h and group % h == 0 and (h == group or h >= 8)]
        if packed := op.attributes.get("packed", 0):
            heads = [packed]
        for h in dict.fromkeys(heads):
            smallest = max(1, 16 // h)
            for q in tile_sizes(op["queries"], smallest):
                if q > smallest and q * h > 256:
                    continue
                for k in (64, 128):
                    for split in SPLITS:
                        if split == 1 or (split <= op.attributes.get("splits", MOST_SPLITS) and op["keys"] // split >= 64):
                            yield OperatorMapping(self.kernel.name, self.unit, "wave", {"q": q, "heads": h, "k": k, "split": split})

    def _shape(self, mapping: OperatorMapping) -> tuple[int, int, int, int]:
        """Query positions, query heads and keys of a block, and the blocks that share a range of keys."""
        op = self.kernel.operator
        h = min(mapping.integer("heads"), self.blocks.group)
        return min(mapping.integer("q"), op["queries"]), h, min(mapping.integer("k"), op["keys"]), mapping.integer("split")

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        """Queries and two blocks of keys and values in shared memory, scores and the running output in registers, per thread
        block; the partial outputs of a split in the cache."""
        op, b = self.kernel.operator, self.blocks
        q, h, k, split = self._shape(mapping)
        shared = self.target.pad_capacity("activations", self.unit)[0]
        sums = self.target.pad_capacity("outputs", self.unit)[0]
        head = op["head_dim"] * max(2, ceil(b.query.format.bits / 8))
        needs = {shared: q * h * head + 2 * k * max(ceil(b.key_size), head)}
        needs[sums] = needs.get(sums, 0) + q * h * (k + op["value_dim"]) * SUM_BYTES
        if split > 1:
            needs[self.cache[0]] = b.heads * op["queries"] * b.group * (op["value_dim"] + 2) * split * SUM_BYTES
        return needs

    @cached_property
    def _ranges(self) -> dict[int, list[tuple[int, int]]]:
        return {}

    def _rows_and_keys(self, q: int) -> list[tuple[int, int]]:
        if q not in self._ranges:
            self._ranges[q] = self.blocks.rows_and_keys(q)
        return self._ranges[q]

    def _block_cycles(self, rows: int, keys: int) -> tuple[int, int]:
        """Matrix and vector cycles of one block of keys on one SM. The units take turns, in part at least, so that power does not
        limit the clock."""
        op, number_format = self.kernel.operator, self.placement[1]
        matrix = int(self.core.tile_cycles(rows, keys, op["head_dim"], number_format, full=True))
        matrix += int(self.core.tile_cycles(rows, op["value_dim"], keys, number_format, full=True))
        unit = self.target.unit(self.target.vector_unit(self.kernel.name))
        return matrix, unit.cycles(Vector(rows * keys, SOFTMAX_OPERATIONS, 1)) + unit.cycles(Vector(rows * op["value_dim"], 2))

    def _schedule(self, q: int, h: int, k: int, split: int) -> _Schedule:
        """The SM that works longest. Blocks are handed out longest first: no SM is longer at work than the mean and one of the
        shortest blocks."""
        device, sms = self.target.device, self.core.count
        clock = device.unit_clock(self.unit)
        vector_clock = device.unit_clock(self.target.vector_unit(self.kernel.name))
        copies = self.blocks.heads * split * ceil(self.blocks.group / h)
        kinds: dict[tuple[int, int], int] = {}
        for positions, keys in self._rows_and_keys(q):
            key = (positions * h, ceil(ceil(keys / k) / split))
            kinds[key] = kinds.get(key, 0) + copies
        steps = cycles_to_fs(ceil(k / SLICE) * DEPENDENT_STEPS * self.core.step_latency, clock)
        core = self.core
        bulk = self.few and not self._loaded
        between = core.decode_overhead if bulk and core.decode_overhead is not None else core.attention_overhead
        each = core.row_overhead if self.few else 0
        overhead = {rows: cycles_to_fs(between + each * ceil(rows / LEAST_ROWS) * LEAST_ROWS, clock) for rows, _ in kinds}
        cycles = {rows: self._block_cycles(rows, k) for rows in {rows for rows, _ in kinds}}
        if self.few and (self._loaded or core.cluster == 1):
            steps += LOADS * ceil(self.target.memory.latency * self._away)
        turn = {rows: max(self._turn(cycles_to_fs(m, clock), cycles_to_fs(v, vector_clock)), steps) for rows, (m, v) in cycles.items()}
        times = {(rows, length): turn[rows] * length + overhead[rows] for rows, length in kinds}
        longest, shortest = max(times.values()), min(times.values())
        blocks = sum(kinds.values())
        if len(kinds) == 1:
            busy = ceil(blocks / sms) * longest
        else:
            busy = max(longest, -(-sum(times[kind] * count for kind, count in kinds.items()) // sms) + shortest)
        matrix, vector = (sum(cycles[rows][unit] * length * count for (rows, length), count in kinds.items()) for unit in (0, 1))
        pairs = sum(rows * length * count for (rows, length), count in kinds.items()) * k
        return _Schedule(busy, -(-matrix // sms), -(-vector // sms), pairs, blocks)

    @cached_property
    def _loaded(self) -> bool:
        """Whether few queries of a group with a 16-bit cache run on a unit made for bulk copies: libraries have kernels that use these for
        8-bit caches alone (TensorRT-LLM's XQA for Hopper), and fall back on those of the generation before, whose threads load."""
        packed = self.kernel.operator.attributes.get("packed", self.blocks.group)
        return self.core.cluster > 1 and packed > 1 and self.blocks.cached[-1].format.element_bits >= 16

    def _turn(self, matrix: int, vector: int) -> int:
        """Femtoseconds of both units: one after the other, less what asynchronous instructions hide."""
        return matrix + vector - int(min(matrix, vector) * self.core.attention_overlap)

    @cached_property
    def _away(self) -> Fraction:
        """Share of the keys and values that come from main memory."""
        once = sum((o.size for o in self.blocks.cached), Fraction(0))
        return self.missing(self.blocks.cached) / once if once else Fraction(0)

    def _traffic(self, q: int, h: int, split: int, blocks: int) -> tuple[Fraction, Fraction, Fraction, Fraction]:
        """Bytes read from main memory, delivered by the cache, written, and of partial outputs."""
        op, b = self.kernel.operator, self.blocks
        rows = b.heads * op["queries"]
        fed = sum(keys for _, keys in self._rows_and_keys(q)) * b.key_size * b.heads * ceil(b.group / h)
        read = self._keys_read(fed, blocks) + self.missing(tuple(o for o in self.kernel.reads if o not in b.cached))
        partial = Fraction(rows * b.group * (op["value_dim"] + 2) * split * SUM_BYTES) if split > 1 else Fraction(0)
        return read, fed + b.row_size * rows, b.out_size * rows, partial

    def _keys_read(self, fed: Fraction, blocks: int) -> Fraction:
        """Bytes of keys and values from main memory: once if those of the heads at work fit into half of the cache's window,
        else as often as thread blocks read them; less what the cache already holds."""
        b = self.blocks
        once = sum((o.size for o in b.cached), Fraction(0))
        missing = self.missing(b.cached) / once if once else Fraction(0)
        at_work = min(b.heads, ceil(self.core.count * b.heads / blocks))
        return missing * (once if once / b.heads * at_work <= self.cache[1].window // 2 else fed)

    def plan(self, mapping: OperatorMapping) -> Plan:
        op, b = self.kernel.operator, self.blocks
        q, h, k, split = self._shape(mapping)
        work = self._schedule(q, h, k, split)
        read, fed, written, partial = self._traffic(q, h, split, work.blocks)
        vector = self.target.vector_unit(self.kernel.name)
        clocks = [self.target.device.unit_clock(name) for name in (self.unit, vector)]
        macs = work.pairs * (op["head_dim"] + op["value_dim"])
        jobs: tuple[Job, ...] = (
            Job("q k, p v", self.unit, work.matrix, cycles_to_fs(work.matrix, clocks[0]), macs=macs),
            Job("softmax", vector, work.vector, cycles_to_fs(work.vector, clocks[1]), operations=(SOFTMAX_OPERATIONS + 1) * work.pairs),
            *self.blend(
                (
                    Job("take turns", self.target.turns(self.unit), work.busy_fs, work.busy_fs),
                    *self.main_job(read, written if split == 1 else Fraction(0)),
                    *self.cache_job(fed, written if split == 1 else partial),
                )
            ),
        )
        if split == 1:
            return Plan(mapping, ((jobs,),), (0,), self.footprint(mapping), self.setup)
        waits = [("merge launch", self.target.device.launch), ("reduction", self.core.split_latency)]
        merge = (Vector(b.heads * op["queries"] * b.group * op["value_dim"] * split, 2),)
        last = (*self.main_job(Fraction(0), written), *self.cache_job(partial, written), *self.vector_share(merge))
        return Plan(mapping, ((jobs,), (last,)), (0,), self.footprint(mapping), (*self.setup, *_some(waits)))

    def bound(self, mapping: OperatorMapping) -> int:
        """Femtoseconds of the SM that works longest, with what comes before."""
        q, h, k, split = self._shape(mapping)
        known = self._bounds.get((q, h, k, split))
        if known is None:
            before = sum(fs for _, fs in self.setup)
            if split > 1:
                before += self.target.device.launch + self.core.split_latency
            known = self._bounds[q, h, k, split] = before + self._schedule(q, h, k, split).busy_fs
        return known

    @cached_property
    def _bounds(self) -> dict[tuple[int, int, int, int], int]:
        return {}


@dataclass(frozen=True, slots=True)
class _Schedule:
    """Femtoseconds of the SM that works longest, matrix and vector cycles of a mean SM, pairs of a query and a key that are
    computed, and thread blocks."""

    busy_fs: int
    matrix: int
    vector: int
    pairs: int
    blocks: int


def _some(waits: list[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    return tuple(wait for wait in waits if wait[1])
