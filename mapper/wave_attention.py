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
"""Parts of the keys that different thread blocks work on, at most; exactly `splits` where the operator states how many."""

SPLITS = sorted(n << i for n in (1, 3) for i in range(9) if n << i <= MOST_SPLITS)
"""Numbers of parts that are tried: libraries take the least number that fills the SMs, not powers of two alone."""

FEWEST_SPLIT = 64
"""Keys of a part, at least."""

DEPENDENT_STEPS = 3
"""Scores, softmax and values of a block of keys wait for each other."""

GROUP_ROWS = 64
"""Rows of queries that four warps multiply together, 16 each (FlashAttention 2) or in one instruction of a warp group (Hopper): blocks
of fewer rows take as long."""

PROMPT_GROUPS = 2
"""Such groups of rows in a thread block of a prompt that loads by bulk copies."""

KEYS_SIZE = 32 * 1024
"""Bytes of the keys of a block, at most: 128 keys of a head of 128 in 16 bits, 256 in 8 bits, as FlashAttention 2 with pages and
TensorRT-LLM's kernels for prompts on Hopper are built; half of it as often as shared memory asks for."""

FEWEST_KEYS = 16
"""Keys of a block, at least: those of a matrix instruction."""

MOST_BESIDE = 2
"""Thread blocks side by side on an SM, at most: registers hold no more."""

TAIL = Fraction(1, 2)
"""Thread blocks of a causal mask are handed out as they lie, the longest of each head last: when the last one starts, the others have
half of a longest block before them (one head fills the SMs) to a third (many short heads). Of 1/2 and 5/8, what a simulated queue
yields for one block on an SM, the half of the shapes called fitted prefers this one on an A100."""

HIDDEN = Fraction(3, 5)
"""Share of the cycles between two thread blocks that another one on the same SM fills with its own work. Fitted, as the cycles below, on
attention of an A100 SXM 80 GB (NVIDIA aiconfigurator, vLLM 0.14.0) and an H100 SXM (TensorRT-LLM 1.3.0rc10), the half of the shapes
called fitted: properties of these kernels, not of a device."""

FIRST_LOADS = 2
"""Loads from main memory that a thread block waits for before its first product: where its keys lie and its queries, then keys."""

LEAST_ROWS = 8
"""Rows of queries of a matrix instruction whose operands are swapped: few queries are padded to it."""

BULK_KEYS = 64
"""Keys of a block of few queries that bulk copies load."""

BULK_ROWS = 16
"""Rows of few queries up to which two such thread blocks lie side by side."""

PART_KEYS = 256
"""Keys of a block of few queries whose eight warps load keys and values in parts."""

PART_SIZE = 64
"""Bytes of each key in such a part: the block waits for one after the other."""

ROW_CYCLES = 120
"""Cycles more for each row of few queries in these two kernels: it is loaded, reduced between warps and written; fitted on an H100."""

LANE_KEYS = 16
"""Keys of a step of a kernel without matrix instructions."""

LANE_OPERATIONS = 7
"""Vector operations per element of a key or a value in it: widening, multiplication, sums over threads, addresses; fitted on an H100."""

LANE_LOADS = Fraction(1, 2)
"""Loads that a step of it waits for: keys and values once each per 64; fitted on an H100."""

MERGED_ROWS = 4
"""Rows of a thread block of the kernel that merges parts (FlashAttention 2, heads of 128)."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a kernel goes over the keys.

    `rows` of queries are padded to whole multiples, and keys to those of `whole`, `keys` at a time; at most so many thread blocks `beside`
    each other on an SM; `loads` from main memory that a block of keys waits for; cycles for `each` row of a thread block; whether
    `lanes` of the vector unit multiply, head by head.
    """

    rows: int
    whole: int
    keys: int
    beside: int = 1
    loads: Fraction = Fraction(0)
    each: int = 0
    lanes: bool = False


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

    @cached_property
    def style(self) -> Style:
        """Units whose operands threads load run one kernel for prompts and for few queries, two blocks side by side where shared memory
        holds them (FlashAttention 2). Units fed by bulk copies run prompts in blocks of two groups of rows, one on an SM. For few queries
        libraries have kernels that use bulk copies, on Hopper for 8-bit caches alone (`bulk_cache`; TensorRT-LLM's XQA): for a group
        with a 16-bit cache they fall back there on those of the generation before. A head by itself (`packed` is 1) is multiplied by
        the vector unit."""
        packed = self.kernel.operator.attributes.get("packed", 0)
        if self.few and packed == 1:
            return Style(1, LANE_KEYS, LANE_KEYS, loads=LANE_LOADS, lanes=True)
        whole = _power(KEYS_SIZE // self._key_bytes)
        if self.core.cluster == 1:
            keys = self._keys(GROUP_ROWS, whole)
            beside = self._shared // self._held(GROUP_ROWS, keys)
            return Style(GROUP_ROWS, whole, keys, max(1, min(MOST_BESIDE, beside)))
        if not self.few:
            return Style(GROUP_ROWS, whole, self._keys(PROMPT_GROUPS * GROUP_ROWS, whole))
        rows = packed or self.blocks.group
        if rows > 1 and self.blocks.cached[-1].format.element_bits > self.core.bulk_cache:
            loads = Fraction(self._key_bytes, PART_SIZE)
            return Style(LEAST_ROWS, PART_KEYS, self._keys(min(rows, GROUP_ROWS), PART_KEYS), loads=loads, each=ROW_CYCLES)
        keys = self._keys(min(rows, GROUP_ROWS), BULK_KEYS)
        return Style(LEAST_ROWS, BULK_KEYS, keys, MOST_BESIDE if rows <= BULK_ROWS else 1, each=ROW_CYCLES)

    @cached_property
    def _key_bytes(self) -> int:
        """Bytes of a key as it lies in shared memory."""
        return self.kernel.operator["head_dim"] * max(1, ceil(self.blocks.cached[-1].format.element_bits / 8))

    @cached_property
    def _shared(self) -> int:
        """Bytes of shared memory of one SM."""
        return self.target.pad_capacity("activations", self.unit)[1]

    def _held(self, rows: int, keys: int) -> int:
        """Bytes of shared memory for rows of queries and a block of keys with their values."""
        return rows * self.kernel.operator["head_dim"] * max(2, ceil(self.blocks.query.format.bits / 8)) + keys * ceil(self.blocks.key_size)

    def _keys(self, rows: int, most: int) -> int:
        """At most so many keys, or half as often as shared memory asks for, which holds them beside rows of queries, and registers, which
        hold their scores."""
        keys, width = most, self.kernel.operator["value_dim"]
        registers = self.target.pad_capacity("outputs", self.unit)[1]
        while keys > FEWEST_KEYS and (self._held(rows, keys) > self._shared or rows * (keys + width) * SUM_BYTES > registers):
            keys //= 2
        return keys

    def candidates(self) -> Iterator[OperatorMapping]:
        op, group, k = self.kernel.operator, self.blocks.group, self.style.keys
        if not self.few:
            q = GROUP_ROWS * (PROMPT_GROUPS if self.core.cluster > 1 else 1)
            yield OperatorMapping(self.kernel.name, self.unit, "wave", {"q": q, "heads": 1, "k": k, "split": 1})
            return
        heads = [h for h in (group >> i for i in range(group.bit_length())) if h and group % h == 0 and (h == group or h >= 8)]
        if packed := op.attributes.get("packed", 0):
            heads = [packed]
        parts = min(MOST_SPLITS, ceil(op["keys"] / max(FEWEST_SPLIT, self.style.whole)))
        stated = op.attributes.get("splits", 0)
        splits = [stated] if stated else sorted({parts, *(split for split in SPLITS if split < parts)})
        for h in dict.fromkeys(heads):
            smallest = max(1, 16 // h)
            for q in tile_sizes(op["queries"], smallest):
                if q > smallest and q * h > 256:
                    continue
                for split in splits:
                    yield OperatorMapping(self.kernel.name, self.unit, "wave", {"q": q, "heads": h, "k": k, "split": split})

    def _shape(self, mapping: OperatorMapping) -> tuple[int, int, int, int]:
        """Query positions, query heads and keys of a block, and the blocks that share a range of keys."""
        op = self.kernel.operator
        h = min(mapping.integer("heads"), self.blocks.group)
        return min(mapping.integer("q"), op["queries"]), h, mapping.integer("k"), mapping.integer("split")

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        """Queries, keys and values in shared memory (prompts behind bulk copies: two blocks of them, where they fit), scores and the
        running output in registers, per thread block; the partial outputs of a split in the cache."""
        op, b = self.kernel.operator, self.blocks
        q, h, k, split = self._shape(mapping)
        shared = self.target.pad_capacity("activations", self.unit)[0]
        sums = self.target.pad_capacity("outputs", self.unit)[0]
        held, two = self._held(q * h, k), self._held(q * h, 2 * k)
        needs = {shared: two if self.core.cluster > 1 and not self.few and two <= self._shared else held}
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
        op, number_format, style = self.kernel.operator, self.placement[1], self.style
        rows = -(-rows // style.rows) * style.rows
        unit = self.target.unit(self.target.vector_unit(self.kernel.name))
        if style.lanes:
            return 0, unit.cycles(Vector(rows * keys * (op["head_dim"] + op["value_dim"]), LANE_OPERATIONS))
        scores, values = (rows, keys, op["head_dim"]), (rows, op["value_dim"], keys)
        if style.rows == LEAST_ROWS:  # keys and values are the left operands
            scores, values = (keys, rows, op["head_dim"]), (op["value_dim"], rows, keys)
        matrix = sum(int(self.core.tile_cycles(*sides, number_format, full=True)) for sides in (scores, values))
        return matrix, unit.cycles(Vector(rows * keys, SOFTMAX_OPERATIONS, 1)) + unit.cycles(Vector(rows * op["value_dim"], 2))

    def _schedule(self, q: int, h: int, k: int, split: int) -> _Schedule:
        """The SM that works longest, of thread blocks handed out as they lie."""
        device, sms, style = self.target.device, self.core.count, self.style
        clock = device.unit_clock(self.unit)
        vector_clock = device.unit_clock(self.target.vector_unit(self.kernel.name))
        copies = self.blocks.heads * ceil(self.blocks.group / h)
        kinds: dict[tuple[int, int], int] = {}  # thread blocks by their rows of queries and blocks of keys
        pairs = 0
        for positions, keys in self._rows_and_keys(q):
            kind = (positions * h, ceil(ceil(keys / style.whole) / split) * -(-style.whole // k))
            kinds[kind] = kinds.get(kind, 0) + copies * split
            pairs += positions * h * keys * copies
        cycles = {rows: self._block_cycles(rows, k) for rows in {rows for rows, _ in kinds}}
        alone, shared = self._turns({rows: (cycles_to_fs(m, clock), cycles_to_fs(v, vector_clock)) for rows, (m, v) in cycles.items()}, k)
        latency = self.target.memory.latency * self._away
        # of the thread blocks that read a key, the first waits for main memory and the others for the cache
        missing = self._away * h / self.blocks.group
        wait = ceil(style.loads * (missing * self.target.memory.latency + (1 - missing) * self.cache[1].latency))
        between = ceil(FIRST_LOADS * latency) + (0 if style.lanes else cycles_to_fs(self.core.attention_overhead, clock))
        each = {rows: cycles_to_fs(style.each * -(-rows // style.rows) * style.rows, clock) for rows in cycles}
        lone = {(r, length): (alone[r] + wait) * length + between + each[r] for r, length in kinds}
        blocks, longest = sum(kinds.values()), max(lone.values())
        mean = -(-sum(lone[kind] * count for kind, count in kinds.items()) // sms)
        busy = _queue(kinds, blocks, sms, 1, longest, longest, mean)
        if style.beside > 1:
            hidden = int(between * HIDDEN)
            times = {(r, n): (shared[r] + wait) * n + between + each[r] for r, n in kinds}
            times = {kind: max(fs - hidden, -(-fs // style.beside)) for kind, fs in times.items()}
            together = max(longest, max(times.values()) * style.beside)
            mean = -(-sum(times[kind] * count for kind, count in kinds.items()) // sms)
            busy = min(busy, _queue(kinds, blocks, sms, style.beside, longest, together, mean))
        matrix, vector = (sum(cycles[rows][unit] * length * count for (rows, length), count in kinds.items()) for unit in (0, 1))
        return _Schedule(busy, -(-matrix // sms), -(-vector // sms), pairs, blocks)

    def _turns(self, units: dict[int, tuple[int, int]], k: int) -> tuple[dict[int, int], dict[int, int]]:
        """Femtoseconds of a block of keys, by rows of queries: of a thread block alone on its SM, and beside another one. Both units follow
        each other, less what asynchronous instructions, or another thread block, hide; few queries also wait for steps."""
        hidden = self.core.attention_overlap
        steps = ceil(k / SLICE) * DEPENDENT_STEPS * self.core.step_latency if self.few and not self.style.lanes else 0
        least = cycles_to_fs(steps, self.target.device.unit_clock(self.unit))
        beside = {rows: max(m + v - int(min(m, v) * hidden), least) for rows, (m, v) in units.items()}
        if self.core.cluster > 1:
            return beside, beside
        alone = {rows: max(m + v, least) for rows, (m, v) in units.items()}
        return alone, beside if self.style.beside > 1 else alone

    @cached_property
    def _away(self) -> Fraction:
        """Share of the keys and values that come from main memory."""
        once = sum((o.size for o in self.blocks.cached), Fraction(0))
        return self.missing(self.blocks.cached) / once if once else Fraction(0)

    def _traffic(self, q: int, h: int, split: int) -> tuple[Fraction, Fraction, Fraction, Fraction]:
        """Bytes read from main memory, delivered by the cache, written, and of partial outputs."""
        op, b = self.kernel.operator, self.blocks
        rows = b.heads * op["queries"]
        fed = sum(keys for _, keys in self._rows_and_keys(q)) * b.key_size * b.heads * ceil(b.group / h)
        blocks = Fraction(rows * b.group * split, q * h)
        read = self._keys_read(fed, blocks) + self.missing(tuple(o for o in self.kernel.reads if o not in b.cached))
        partial = Fraction(rows * b.group * (op["value_dim"] + 2) * split * SUM_BYTES) if split > 1 else Fraction(0)
        return read, fed + b.row_size * rows, b.out_size * rows, partial

    def _keys_read(self, fed: Fraction, blocks: Fraction) -> Fraction:
        """Bytes of keys and values from main memory: once if those that `blocks` thread blocks, so many of them as there are SMs at a time,
        are at fit into half of the cache's window, else as often as thread blocks read them; less what the cache already holds. Half of
        it where a measurement let keys and values lie in the same place (`aliased`)."""
        share = Fraction(1, 2) if self.kernel.operator.attributes.get("aliased", 0) else Fraction(1)
        once = sum((o.size for o in self.blocks.cached), Fraction(0))
        at_work = share * once * min(Fraction(1), self.core.count / blocks)
        return self._away * share * (once if at_work <= self.cache[1].window // 2 else fed)

    def plan(self, mapping: OperatorMapping) -> Plan:
        op, b = self.kernel.operator, self.blocks
        q, h, k, split = self._shape(mapping)
        work = self._schedule(q, h, k, split)
        read, fed, written, partial = self._traffic(q, h, split)
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
        waits = self._merging(q * h, split)
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
                before += sum(fs for _, fs in self._merging(q * h, split))
            known = self._bounds[q, h, k, split] = before + self._schedule(q, h, k, split).busy_fs
        return known

    def _merging(self, rows: int, split: int) -> list[tuple[str, int]]:
        """What the parts wait for: a kernel of its own where threads load, the last thread block of the rows behind bulk copies; it takes
        one part after the other from the cache, through the port of its SM."""
        core, fused = self.core, self.core.cluster > 1
        size = (rows if fused else MERGED_ROWS) * (self.kernel.operator["value_dim"] + 2) * SUM_BYTES
        drawn = cycles_to_fs(ceil(size / core.port), self.target.device.unit_clock(self.unit)) if core.port else 0
        launch = 0 if fused else self.target.device.launch
        return [("merge launch", launch), ("reduction", core.split_latency), ("parts", split * (self.cache[1].latency + drawn))]

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


def _queue(kinds: dict[tuple[int, int], int], blocks: int, sms: int, beside: int, longest: int, together: int, mean: int) -> int:
    """Femtoseconds of thread blocks, so many beside each other on an SM: of the `longest` alone, of as many of them `together`, and of the
    `mean` work of an SM."""
    if len({length for _, length in kinds}) == 1:
        rounds, rest = divmod(blocks, beside * sms)
        return rounds * together + (together if rest > sms else longest if rest else 0)
    return longest if blocks <= sms else max(longest, mean + int(TAIL * (longest + together) / 2))


def _power(number: int) -> int:
    """The largest power of two of at most `number`, or the fewest keys of a block."""
    return max(FEWEST_KEYS, 1 << max(0, number.bit_length() - 1))


def _some(waits: list[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    return tuple(wait for wait in waits if wait[1])
