"""Kernels on a GPU: thread blocks in waves over the streaming multiprocessors (SMs), behind a cache.

A kernel is a grid of thread blocks, handed to free SMs in order. All blocks of one wave run side by side; while they run, the
cache feeds them and main memory feeds the cache, so that a wave lasts as long as its slowest resource: the matrix units, the
vector units, the cache, or main memory. The last wave is shorter in traffic but not in computation (the tail).

The cache holds whole tensors in least-recently-used order between kernels (`resident` names those a kernel finds there).
Inside a product it keeps one operand, or a panel of it, in half of its capacity, while the other streams; what does not fit
is read again from main memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil

from hw.memory import Cache
from hw.quantity import FS_PER_S, cycles_to_fs, transfer_fs
from hw.units.tensor_core import TensorCore
from hw.work import Gemm, Vector
from mapper.attention import Blocks
from mapper.errors import MappingError
from mapper.kernels import Kernel, Operand
from mapper.mapping import OperatorMapping
from mapper.nest import products
from mapper.pipeline import Job, Loop, Tile, Tiles
from mapper.plan import Plan, tile_sizes
from mapper.program import Move
from mapper.target import Target
from mapper.vectorwork import of_kernel, of_operator, share

STAGES = 3
"""Slabs of both operands in shared memory at a time: one in use, two on their way."""

SLAB = 32
"""Elements of k per slab."""

SUM_BYTES = 4
"""Partial sums are 32-bit floats (or integers)."""


@dataclass(frozen=True)
class Wave:
    """What the waves of all kernels share."""

    target: Target
    kernel: Kernel
    resident: frozenset[str] = frozenset()

    @cached_property
    def cache(self) -> tuple[str, Cache]:
        """The cache and its name. Raises `MappingError` for a device without one."""
        if self.target.cache is None:
            raise MappingError(f"{self.target.device.name}: thread blocks need a cache in front of main memory; add a memory of kind cache")
        return self.target.cache

    def missing(self, operands: tuple[Operand, ...]) -> Fraction:
        """Bytes of operands that are not in the cache when the kernel starts."""
        return sum((o.size for o in operands if o.tensor not in self.resident), Fraction(0))

    def main_job(self, read: Fraction, written: Fraction) -> tuple[Job, ...]:
        return (self.target.transfer("stream", "activations", read, written),) if read + written else ()

    def cache_job(self, read: Fraction, written: Fraction, at_least_fs: int = 0) -> tuple[Job, ...]:
        size = read + written
        fs = max(transfer_fs(size, self.cache[1].bandwidth) if size else 0, at_least_fs)
        name = self.cache[0]
        return (Job("feed", name, fs, fs, (Move(name, read, written),)),) if fs else ()

    def setup(self) -> tuple[tuple[str, int], ...]:
        latency = self.cache[1].latency
        return (*self.target.setup(), *((("cache", latency),) if latency else ()))

    def vector_share(self, works: tuple[Vector, ...], part: int = 1, total: int = 1) -> tuple[Job, ...]:
        """`part` of `total` portions of vector work, spread over all SMs."""
        if not works:
            return ()
        unit = self.target.vector_unit(self.kernel.name)
        count = self.target.unit(unit).count
        job = self.target.vector("vector", unit, [share(w, part, total * count) for w in works])
        operations = Fraction(sum(w.elements * (w.operations + w.specials) for w in works) * part, total)
        return (Job(job.name, job.on, job.cycles, job.fs, operations=operations),)


@dataclass(frozen=True)
class WaveProduct(Wave):
    """A product as waves. Parameters: thread-block tile `m` x `n`, and `split` blocks that share one tile's k."""

    @cached_property
    def placement(self) -> tuple[str, str]:
        return self.target.matrix_unit(self.kernel.name, self.kernel.input(0).format, self.kernel.input(1).format)

    @property
    def unit(self) -> str:
        return self.placement[0]

    @cached_property
    def core(self) -> TensorCore:
        core = self.target.unit(self.unit)
        assert isinstance(core, TensorCore)
        return core

    def candidates(self) -> Iterator[OperatorMapping]:
        shapes = products(self.kernel)
        m_max, n_max, k_max = (max(getattr(p, d) for p in shapes) for d in "mnk")
        for m in (16, 32, 64, 128, 256):
            for n in (32, 64, 128, 256):
                if m * n > 128 * 256 or (m > 16 and m >= 2 * m_max) or (n > 32 and n >= 2 * n_max):
                    continue
                split = 1
                while split == 1 or (split <= 32 and k_max // split >= 128):
                    yield OperatorMapping(self.kernel.name, self.unit, "wave", {"m": m, "n": n, "split": split})
                    split *= 2

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        """Slabs of both operands in shared memory and sums in registers, per thread block; the partial sums of a split in the
        cache."""
        m, n = mapping.integer("m"), mapping.integer("n")
        width = ceil(max(16, self.kernel.input(0).format.element_bits) / 8)
        shared = self.target.pad_capacity("activations", self.unit)[0]
        sums = self.target.pad_capacity("outputs", self.unit)[0]
        needs = {shared: STAGES * (m + n) * SLAB * width}
        needs[sums] = needs.get(sums, 0) + m * n * SUM_BYTES
        if (split := mapping.integer("split")) > 1:
            needs[self.cache[0]] = sum(p.count * p.m * p.n for p in products(self.kernel)) * split * SUM_BYTES
        return needs

    def _blocks(self, mapping: OperatorMapping) -> int:
        m, n, split = (mapping.integer(p) for p in ("m", "n", "split"))
        return sum(p.count * ceil(p.m / m) * ceil(p.n / n) * split for p in products(self.kernel))

    def _block_work(self, mapping: OperatorMapping) -> Gemm:
        shapes = products(self.kernel)
        m = min(mapping.integer("m"), max(p.m for p in shapes))
        n = min(mapping.integer("n"), shapes[0].n)
        return Gemm(m, n, ceil(shapes[0].k / mapping.integer("split")), self.placement[1])

    def bound(self, mapping: OperatorMapping) -> int:
        waves = ceil(self._blocks(mapping) / self.core.count)
        return waves * self.target.device.work_fs(self.unit, self._block_work(mapping))

    def main_traffic(self, mapping: OperatorMapping) -> Fraction:
        """Bytes read from main memory: each missing operand once, and again what the cache cannot keep.

        When neither operand fits into half of the cache, the cheapest of three orders counts: panels of the left or of the
        right operand stay while the other streams past them, or all thread blocks of a wave advance through k together and
        share the slabs of their rows and columns.
        """
        left, right = self.kernel.input(0), self.kernel.input(1)
        others = tuple(o for o in self.kernel.reads if o.tensor not in (left.tensor, right.tensor))
        total = self.missing(others)
        shapes = products(self.kernel)
        pairs = sum(p.count for p in shapes)
        half = max(1, self.cache[1].total // 2)
        a, b = left.size / pairs, right.size / pairs
        miss_a = a * (left.tensor not in self.resident)
        miss_b = b * (right.tensor not in self.resident and right.tensor != left.tensor)
        if min(a, b) <= half:
            return total + (miss_a + miss_b) * pairs
        m, n = mapping.integer("m"), mapping.integer("n")
        rows, columns = max(ceil(p.m / m) for p in shapes), ceil(shapes[0].n / n)
        options = [miss_a * ceil(b / half) + miss_b, miss_b * ceil(a / half) + miss_a]
        for high in range(1, min(rows, self.core.count) + 1):
            wide = min(columns, max(1, self.core.count // high))
            options.append(miss_a * ceil(columns / wide) + miss_b * ceil(rows / high))
        return total + min(options) * pairs

    def cache_traffic(self, mapping: OperatorMapping) -> Fraction:
        """Bytes that the cache delivers: every thread block reads its rows, every cluster of thread blocks its columns."""
        left, right = self.kernel.input(0), self.kernel.input(1)
        m, n = mapping.integer("m"), mapping.integer("n")
        total = Fraction(0)
        for p in products(self.kernel):
            total += p.count * p.k * p.m * ceil(p.n / n) * left.format.bits / 8
            total += p.count * p.k * p.n * ceil(ceil(p.m / m) / self.core.cluster) * right.format.bits / 8
        return total

    def plan(self, mapping: OperatorMapping) -> Plan:
        split, sms = mapping.integer("split"), self.core.count
        blocks = self._blocks(mapping)
        work = self._block_work(mapping)
        cycles = self.core.cycles(work)
        clock = self.target.device.unit_clock(self.unit)
        block_fs = cycles_to_fs(cycles, clock)
        macs = sum(p.count * p.m * p.n * p.k for p in products(self.kernel))
        results = sum(p.count * p.m * p.n for p in products(self.kernel))
        read, written = self.main_traffic(mapping), sum((o.size for o in self.kernel.writes), Fraction(0))
        fed = self.cache_traffic(mapping)
        partial = Fraction(results * split * SUM_BYTES) if split > 1 else Fraction(0)
        epilogue = tuple(w for op in self.kernel.fused for w in of_operator(op))
        fill = ceil(fed / blocks / self.core.fill_bandwidth)  # cycles to feed one thread block
        shared, _ = self.target.pad_capacity("activations", self.unit)
        left, right, _ = self.core.operand_elements(work)
        width = self.kernel.input(0).format.bits / 8
        shared_read = (left * width + right * self.kernel.input(1).format.bits / 8) * blocks
        direct = split == 1

        def wave(part: int) -> Tile:
            portion = Fraction(part, blocks)
            moves = (Move(shared, shared_read * portion, fed * portion),)
            tensor = Job("multiply", self.unit, cycles, block_fs, moves, macs=macs * portion)
            jobs: tuple[Job, ...] = (tensor,)
            jobs += self.main_job(read * portion, written * portion if direct else Fraction(0))
            feed_in = fed * portion
            feed_out = written * portion if direct else partial * portion
            jobs += self.cache_job(feed_in, feed_out, cycles_to_fs(fill, clock))
            if direct:
                jobs += self.vector_share(epilogue, part, blocks)
            return (jobs,)

        whole, rest = divmod(blocks, sms)
        tiles: Tiles = ()
        if whole:
            tiles = (Loop(whole, (wave(sms),)),) if whole > 1 else (wave(sms),)
        if rest:
            tiles += (wave(rest),)
        if not direct:
            reduce = (Vector(results * split, 1), *epilogue)
            tiles += (((*self.main_job(Fraction(0), written), *self.cache_job(partial, written), *self.vector_share(reduce)),),)
        return Plan(mapping, tiles, (0,), self.footprint(mapping), self.setup())


@dataclass(frozen=True)
class WaveAttention(Wave):
    """Attention as waves of thread blocks, each with a block of queries of one key/value head and a `split`th of its keys.

    Parameters: `q` query positions, query `heads` and `k` keys per block, `split`. Blocks of fewer heads than share the keys
    read them from the cache once per block.
    """

    @cached_property
    def blocks(self) -> Blocks:
        return Blocks(self.kernel)

    @cached_property
    def placement(self) -> tuple[str, str]:
        return self.target.matrix_unit(self.kernel.name, self.blocks.query.format, self.blocks.cached[-1].format)

    @property
    def unit(self) -> str:
        return self.placement[0]

    @cached_property
    def core(self) -> TensorCore:
        core = self.target.unit(self.unit)
        assert isinstance(core, TensorCore)
        return core

    def candidates(self) -> Iterator[OperatorMapping]:
        op, group = self.kernel.operator, self.blocks.group
        heads = [h for h in (group >> i for i in range(group.bit_length())) if h and group % h == 0 and (h == group or h >= 8)]
        for h in dict.fromkeys(heads):
            smallest = max(1, 16 // h)
            for q in tile_sizes(op["queries"], smallest):
                if q > smallest and q * h > 256:
                    continue
                for k in (64, 128):
                    split = 1
                    while split == 1 or (split <= 256 and op["keys"] // split >= 64):
                        yield OperatorMapping(self.kernel.name, self.unit, "wave", {"q": q, "heads": h, "k": k, "split": split})
                        split *= 2
                        if op["queries"] > 1 and split > 8:
                            break

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

    def _kinds(self, mapping: OperatorMapping) -> list[_Kind]:
        """The kinds of thread block of a mapping, the longest running first."""
        q, h, k, split = self._shape(mapping)
        groups = ceil(self.blocks.group / h)
        counts: dict[tuple[int, int], int] = {}
        for positions, keys in self.blocks.rows_and_keys(q):
            key = (positions * h, ceil(ceil(keys / k) / split))
            counts[key] = counts.get(key, 0) + self.blocks.heads * split * groups
        kinds = []
        for (rows, length), count in counts.items():
            matrix, vector = self._block_cycles(rows, k)
            kinds.append(_Kind(rows, length, count, matrix * length, vector * length))
        return sorted(kinds, key=lambda kind: (max(kind.matrix, kind.vector), kind.rows, kind.length), reverse=True)

    def _block_cycles(self, rows: int, keys: int) -> tuple[int, int]:
        """Matrix and vector cycles of one key block on one SM."""
        op, number_format = self.kernel.operator, self.placement[1]
        matrix = self.core.cycles(Gemm(rows, keys, op["head_dim"], number_format, closes=False))
        matrix += self.core.cycles(Gemm(rows, op["value_dim"], keys, number_format, closes=False))
        unit = self.target.unit(self.target.vector_unit(self.kernel.name))
        vector = unit.cycles(Vector(rows * keys, 4, 1)) + unit.cycles(Vector(rows * op["value_dim"], 2))
        return matrix, vector

    def bound(self, mapping: OperatorMapping) -> int:
        cycles = sum(kind.matrix * kind.count for kind in self._kinds(mapping))
        return cycles // self.core.count * FS_PER_S // self.target.device.unit_clock(self.unit)

    def plan(self, mapping: OperatorMapping) -> Plan:
        op, b = self.kernel.operator, self.blocks
        q, h, k, split = self._shape(mapping)
        clock = self.target.device.unit_clock(self.unit)
        vector_name = self.target.vector_unit(self.kernel.name)
        vector_clock = self.target.device.unit_clock(vector_name)
        kinds = self._kinds(mapping)
        weight = sum(kind.length * kind.count for kind in kinds)
        rows_all = b.heads * op["queries"]
        keys_fed = sum(keys for _, keys in b.rows_and_keys(q)) * b.key_size * b.heads * ceil(b.group / h)
        read = self._keys_read(keys_fed, sum(kind.count for kind in kinds))
        read += self.missing(tuple(o for o in self.kernel.reads if o not in b.cached))
        fed = keys_fed + b.row_size * rows_all
        written = b.out_size * rows_all
        partial = Fraction(rows_all * b.group * (op["value_dim"] + 2) * split * SUM_BYTES) if split > 1 else Fraction(0)
        tiles: Tiles = ()
        for wave, repetitions in _deal(kinds, self.core.count):
            portion = Fraction(sum(kind.length * kind.count for kind in wave), weight)
            pairs = sum(kind.rows * kind.length * kind.count for kind in wave) * k
            matrix, vector = max(kind.matrix for kind in wave), max(kind.vector for kind in wave)
            longest = fed * max(kind.length for kind in wave) / weight  # bytes that one thread block receives
            jobs: tuple[Job, ...] = (
                Job("q k, p v", self.unit, matrix, cycles_to_fs(matrix, clock), macs=pairs * (op["head_dim"] + op["value_dim"])),
                Job("softmax", vector_name, vector, cycles_to_fs(vector, vector_clock), operations=5 * pairs),
            )
            jobs += self.main_job(read * portion, written * portion if split == 1 else Fraction(0))
            fill = cycles_to_fs(ceil(longest / self.core.fill_bandwidth), clock)
            jobs += self.cache_job(fed * portion, (written if split == 1 else partial) * portion, fill)
            tiles += (Loop(repetitions, ((jobs,),)),) if repetitions > 1 else ((jobs,),)
        if split > 1:
            merge = (Vector(rows_all * b.group * op["value_dim"] * split, 2),)
            tiles += (((*self.main_job(Fraction(0), written), *self.cache_job(partial, written), *self.vector_share(merge)),),)
        return Plan(mapping, tiles, (0,), self.footprint(mapping), self.setup())

    def _keys_read(self, fed: Fraction, blocks: int) -> Fraction:
        """Bytes of keys and values from main memory: none if they are in the cache, once if those of the heads at work fit into
        half of it, else as often as thread blocks read them."""
        b = self.blocks
        if all(o.tensor in self.resident for o in b.cached):
            return Fraction(0)
        once = sum((o.size for o in b.cached), Fraction(0))
        at_work = min(b.heads, ceil(self.core.count * b.heads / blocks))
        return once if once / b.heads * at_work <= self.cache[1].total // 2 else fed


@dataclass(frozen=True, slots=True)
class _Kind:
    """`count` thread blocks of `rows` rows and `length` key blocks, with the matrix and vector cycles of one of them."""

    rows: int
    length: int
    count: int
    matrix: int
    vector: int


def _deal(kinds: list[_Kind], sms: int) -> list[tuple[list[_Kind], int]]:
    """Waves of thread blocks, handed out in order: what runs side by side, and how many such waves follow each other."""
    waves: list[tuple[list[_Kind], int]] = []
    open_wave: list[_Kind] = []
    room = sms
    for kind in kinds:
        count = kind.count
        if open_wave:
            take = min(count, room)
            open_wave.append(replace(kind, count=take))
            room, count = room - take, count - take
            if not room:
                waves.append((open_wave, 1))
                open_wave, room = [], sms
        if count >= sms:
            waves.append(([replace(kind, count=sms)], count // sms))
            count %= sms
        if count:
            open_wave, room = [replace(kind, count=count)], sms - count
    if open_wave:
        waves.append((open_wave, 1))
    return waves


@dataclass(frozen=True)
class WaveStream(Wave):
    """Elementwise, normalising, gathering and copying kernels: as fast as memory, cache or vector units allow. No parameters."""

    @cached_property
    def unit(self) -> str:
        return self.target.vector_unit(self.kernel.name) if of_kernel(self.kernel) else self.target.main

    def candidates(self) -> Iterator[OperatorMapping]:
        yield OperatorMapping(self.kernel.name, self.unit, "wave", {})

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        return {}

    def bound(self, mapping: OperatorMapping) -> int:
        return 0

    def plan(self, mapping: OperatorMapping) -> Plan:
        read = sum((o.size for o in self.kernel.reads), Fraction(0))
        written = sum((o.size for o in self.kernel.writes), Fraction(0))
        jobs = self.main_job(self.missing(self.kernel.reads), written)
        jobs += self.cache_job(read, written)
        jobs += self.vector_share(of_kernel(self.kernel))
        return Plan(mapping, ((jobs,),), (0,), {}, self.setup())
