"""Kernels on a GPU: thread blocks on streaming multiprocessors (SMs), behind a cache.

A kernel is a grid of thread blocks, handed to free SMs in order, several side by side on each. While they run, the cache feeds
them and main memory feeds the cache, so that a kernel lasts as long as its slowest resource: the SM with most thread blocks,
the vector units, the cache, or main memory. Around that lie the launch, the first access, and a reduction where k is split.

Between kernels the cache holds what was touched recently (`resident` says how much of each tensor a kernel finds there).
Inside a product it keeps one operand, or a panel of it, in half of its window, while the other streams; what does not fit
is read again from main memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from math import ceil
from typing import Any

import numpy as np

from hw.memory import Cache, Dram
from hw.quantity import FS_PER_S, cycles_to_fs
from hw.units.tensor_core import TensorCore, least, most, operand_bits
from hw.work import Gemm, Vector
from mapper.errors import MappingError
from mapper.kernels import Kernel, Operand
from mapper.mapping import OperatorMapping
from mapper.matrix import OnMatrixUnit
from mapper.nest import products
from mapper.pipeline import Job
from mapper.plan import Plan
from mapper.program import Move
from mapper.residency import NOTHING, Found
from mapper.rowwork import row_work
from mapper.target import Target, converts, mixed
from mapper.vectorwork import of_kernel, of_operator
from workloads.format import Format

STAGES = 3
"""Slabs of both operands in shared memory at a time: one in use, two on their way."""

SLAB = 32
"""Elements of k per slab."""

SUM_BYTES = 4
"""Partial sums are 32-bit floats (or integers)."""

LARGEST_TILE = 128 * 256
"""Results of all thread blocks side by side on one SM, at most: their sums fill half of its registers."""

SHORTEST_SPLIT = 128
"""Elements of k of each part of a split product, at least."""

CONVERSIONS = 1
"""Vector operations to convert one stored weight to the format it is multiplied in; matrix units wait for them."""

CONVERTING_SPLITS = 2
"""Thread blocks that share one tile's k in kernels that convert their weights, at most: such kernels are built with few ways to split.
Chosen among 1, 2, 4 and 8 on int8 and int4 weights of an A100 SXM 80 GB (NVIDIA aiconfigurator, TensorRT-LLM 1.0.0), the half of the
shapes called fitted."""

ROW_BLOCKS = (1, 8, 1, 16)
"""A kernel for a single row, as a row of a product's table: thread blocks of 8 columns, each a dot product of the block's threads
without tiles in shared memory, 16 of them side by side on an SM."""

ROW_TURN = 256
"""Elements of k that a warp of it loads at a time, and then waits for: eight of 16 bits per thread (loads of 16 B)."""

ROW_WAIT = 200
"""Cycles that it waits: a hit in the cache (Abdelkhalik et al., HPEC 2022, on an A100)."""

ROW_OPERATIONS = 2
"""Vector operations per multiply-accumulate in it: one fused, and one to widen the weight."""

OVERLAP = 4
"""Resources that work at the same time take as long as the norm of this order of their times: 19 % longer than one where two
take equally long, 1.5 % where one takes half as long as the other."""

FUSED_TILE = 128 * 128
"""Results of a thread block of a fused mixture-of-experts kernel, at most: those of the open Triton kernel's default settings."""

FUSED_RATE = Fraction(36, 100)
"""Share of the sustained matrix rate that this kernel reaches; fitted, as `FUSED_STREAM`, on fused layers in bf16 of an A100 SXM 80 GB
(NVIDIA aiconfigurator, vLLM 0.14.0), the half of the shapes called fitted."""

FUSED_STREAM = 0.7
"""Share of the sustained memory bandwidth that it reaches."""

_TIE = 1e-9
"""Relative difference below which two estimates are told apart by their exact plans."""


def overlap(times: Sequence[Any]) -> Any:
    """Time of resources that work side by side, from the times of each alone; numbers or arrays alike.

    >>> round(overlap([3.0, 3.0]), 3), overlap([5.0])
    (3.568, 5.0)
    """
    if len(times) == 1:
        return times[0]
    longest = times[0]
    for time in times[1:]:
        longest = most(longest, time)
    whole = most(longest, 1.0)
    return longest * sum((time / whole) ** OVERLAP for time in times) ** (1 / OVERLAP)


@dataclass(frozen=True)
class Wave:
    """What all kernels on a GPU share."""

    target: Target
    kernel: Kernel
    resident: Found = NOTHING

    @cached_property
    def cache(self) -> tuple[str, Cache]:
        """The cache and its name. Raises `MappingError` for a device without one."""
        if self.target.cache is None:
            raise MappingError(f"{self.target.device.name}: thread blocks need a cache in front of main memory; add a memory of kind cache")
        return self.target.cache

    def missing(self, operands: tuple[Operand, ...]) -> Fraction:
        """Bytes of operands that are not in the cache when the kernel starts."""
        return sum((o.size * (1 - self.resident.share(o.tensor)) for o in operands), Fraction(0))

    def main_job(self, read: Fraction, written: Fraction) -> tuple[Job, ...]:
        return (self.target.transfer("stream", "activations", read, written, turn=False),) if read + written else ()

    def cache_job(self, read: Fraction, written: Fraction) -> tuple[Job, ...]:
        if not read + written:
            return ()
        name, cache = self.cache
        fs = cache.occupied_fs(read, written)
        return (Job("feed", name, fs, fs, (Move(name, read, written),)),)

    @cached_property
    def setup(self) -> tuple[tuple[str, int], ...]:
        """The launch, a first access to the cache, and one to main memory as far as the kernel's operands are not in the cache;
        the time until main memory streams at its rate, though no more than these operands take there."""
        everything = sum((o.size for o in self.kernel.reads), Fraction(0))
        absent = self.missing(self.kernel.reads)
        missing = absent / everything if everything else Fraction(0)
        memory = self.target.memory
        ramp = min(ceil(memory.ramp * missing), memory.occupied_fs(absent)) if isinstance(memory, Dram) else 0
        parts = (
            ("launch", self.target.device.launch),
            ("cache", self.cache[1].latency),
            ("first access", ceil(memory.latency * missing)),
            ("ramp", ramp),
        )
        return tuple((what, fs) for what, fs in parts if fs)

    def blend(self, jobs: tuple[Job, ...]) -> tuple[Job, ...]:
        """Jobs at the same time get in each other's way: the longest is stretched, most where another takes as long."""
        longest = max(range(len(jobs)), key=lambda i: (jobs[i].fs, -i))
        job = jobs[longest]
        fs = int(overlap([float(job.fs) for job in jobs]))
        if fs <= job.fs:
            return jobs
        if job.on in self.target.device.units:  # whole cycles of a unit's clock: what is more stands on the queue of its blocks
            queues = [self.target.turns(name) for name in (job.on, *self.target.device.units_for("gemm"))]
            turns = next((queue for queue in queues if queue in self.target.queues), None)
            # which has one job at a time, the longer of what it was to wait for and this
            return (*(j for j in jobs if j.on != turns), Job("wait for others", turns, fs, fs)) if turns else jobs
        return (*jobs[:longest], replace(job, cycles=fs, fs=fs), *jobs[longest + 1 :])

    def vector_share(self, works: tuple[Vector, ...]) -> tuple[Job, ...]:
        """Vector work, spread over all SMs."""
        return (self.target.vector("vector", self.target.vector_unit(self.kernel.name), works),) if works else ()


@dataclass(frozen=True)
class WaveProduct(OnMatrixUnit, Wave):
    """A product in thread blocks.

    Parameters: thread-block tile `m` x `n`, `split` blocks that share one tile's k, and thread `blocks` side by side on an SM.
    """

    @property
    def multiplied(self) -> tuple[Format, Format]:
        return self.kernel.input(0).format, self.kernel.input(1).format

    @cached_property
    def core(self) -> TensorCore:
        core = self.tensor_core.within(self.target.device.power, self.target.device.unit_clock(self.unit))
        return core.slowed(FUSED_RATE) if self.fused else core

    @cached_property
    def fused(self) -> bool:
        """Whether this is a grouped product of a fused mixture-of-experts kernel."""
        return bool(self.kernel.operator.attributes.get("fused_experts"))

    @cached_property
    def shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """(count, m, n, k) of the products; all have the same n and k."""
        return tuple((p.count, p.m, p.n, p.k) for p in products(self.kernel))

    @cached_property
    def table(self) -> np.ndarray[Any, Any]:
        """The candidates as rows of m, n, split, blocks."""
        _, _, n, k = self.shapes[0]
        rows = max(shape[1] for shape in self.shapes)
        every = tilings(self.core.tile_rows, self.core.tile_columns)
        m_tile, n_tile, split = every[:, 0], every[:, 1], every[:, 2]
        useful = ((m_tile == m_tile.min()) | (m_tile < 2 * rows)) & ((n_tile == n_tile.min()) | (n_tile < 2 * n))
        if self.fused:
            useful &= (split == 1) & (m_tile * n_tile <= FUSED_TILE)
        if self._lanes:
            useful &= split <= CONVERTING_SPLITS
        useful &= (split == 1) | (k // split >= SHORTEST_SPLIT)
        table: np.ndarray[Any, Any] = every[useful]
        return np.concatenate((np.array([ROW_BLOCKS], dtype=np.int64), table)) if self._single else table

    def _mapping(self, row: Any) -> OperatorMapping:
        m, n, split, blocks = (int(value) for value in row)
        return OperatorMapping(self.kernel.name, self.unit, "wave", {"m": m, "n": n, "split": split, "blocks": blocks})

    def candidates(self) -> Iterator[OperatorMapping]:
        return (self._mapping(row) for row in self.table)

    def _needs(self, m: Any, n: Any, split: Any, blocks: Any) -> tuple[tuple[str, Any], ...]:
        """Slabs of both operands in shared memory and sums in registers of the blocks side by side; partial sums in the cache."""
        left = right = 8 * ceil(max(16, self.kernel.input(0).format.element_bits) / 8)
        if mixed(self.placement[1]):  # the right operand lies there as it is stored
            right = operand_bits(self.placement[1])[1]
        shared = self.target.pad_capacity("activations", self.unit)[0]
        sums = self.target.pad_capacity("outputs", self.unit)[0]
        results = sum(count * rows * columns for count, rows, columns, _ in self.shapes)
        return (
            (shared, blocks * STAGES * (m * left + n * right) * SLAB // 8),
            (sums, blocks * m * n * SUM_BYTES),
            (self.cache[0], (split > 1) * results * split * SUM_BYTES),
        )

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        needs: dict[str, int] = {}
        for pad, size in self._needs(*_parameters(mapping)):
            if size:
                needs[pad] = needs.get(pad, 0) + size
        return needs

    def _busiest(self, m: Any, n: Any, split: Any, blocks: Any) -> tuple[Any, Any]:
        """Cycles of the SM with most thread blocks, and the number of thread blocks of the grid."""
        core = self.core
        _, _, columns, k = self.shapes[0]
        grid: Any = 0
        for count, rows, _, _ in self.shapes:
            grid = grid + count * -(-rows // m)
        grid = grid * -(-columns // n) * split
        depth = -(-k // split)
        tile = core.tile_cycles(least(m, max(s[1] for s in self.shapes)), least(n, columns), depth, self.placement[1])
        if self._lanes:
            tile = tile - (-least(n, columns) * depth * CONVERSIONS // self._lanes)
        mine = -(-grid // core.count)
        together = least(blocks, mine)
        full, rest = mine // together, mine % together
        cycles = full * core.round_cycles(together, tile, m * n, depth)
        cycles = cycles + (rest > 0) * core.round_cycles(rest, tile, m * n, depth)
        cycles = cycles + -(-mine * m * n * core.drain.numerator // core.drain.denominator)
        if not self._single:
            return cycles, grid
        row = most(mine * -(-n * depth // self._single), -(-mine // blocks) * -(-depth // ROW_TURN) * ROW_WAIT)
        return np.where(m == 1, row, cycles) if isinstance(m, np.ndarray) else row if m == 1 else cycles, grid

    @cached_property
    def _lanes(self) -> int:
        """Vector operations per cycle of one SM where the right operand is stored in another format than it is multiplied in; else 0."""
        if not converts(self.placement[1], self.kernel.input(1).format):
            return 0
        if not self.target.device.units_for("vector"):
            return 0
        return self.target.unit(self.target.vector_unit(self.kernel.name)).operations_per_cycle()

    @cached_property
    def _single(self) -> int:
        """Products per cycle of the vector lanes of one SM where a kernel for a single row is an alternative to tiles; else 0.

        Libraries turn to it for units whose operands threads load; those fed by bulk copies of clusters take one row like others.
        Its multiplications are counted on the matrix unit all the same.
        """
        core = self.core
        if max(shape[1] for shape in self.shapes) > 1 or core.cluster > 1 or 1 in core.tile_rows or self._lanes or self.fused:
            return 0
        if not self.target.device.units_for("vector"):
            return 0
        return self.target.unit(self.target.vector_unit(self.kernel.name)).operations_per_cycle() // ROW_OPERATIONS

    def _fed(self, m: Any, n: Any) -> Any:
        """Bits that the cache delivers: every thread block reads its rows, every cluster of thread blocks its columns."""
        left, right = (self.kernel.input(i).format.bits for i in (0, 1))
        left_bits, right_bits = (float(left), float(right)) if isinstance(m, np.ndarray) else (left, right)
        total: Any = 0
        for count, rows, columns, k in self.shapes:
            total = total + count * k * rows * -(-columns // n) * left_bits
            clusters = -(-rows // (m * self.core.cluster))  # ceil of a ceil
            total = total + count * k * columns * clusters * right_bits
        return total

    @cached_property
    def _streams(self) -> tuple[Fraction, Fraction, Fraction, Fraction, Fraction, int]:
        """Bytes per product of the left and the right operand, those of them that are missing, missing bytes of everything
        else, and the number of products."""
        left, right = self.kernel.input(0), self.kernel.input(1)
        others = tuple(o for o in self.kernel.reads if o.tensor not in (left.tensor, right.tensor))
        pairs = sum(shape[0] for shape in self.shapes)
        miss_b = self.missing((right,)) if right.tensor != left.tensor else Fraction(0)
        return left.size / pairs, right.size / pairs, self.missing((left,)) / pairs, miss_b / pairs, self.missing(others), pairs

    def _read(self, m: Any, n: Any) -> Any:
        """Bytes read from main memory: each missing operand once, and again what the cache cannot keep.

        When neither operand fits into half of the window, the cheapest of three orders counts: panels of the left or of the
        right operand stay while the other streams past them, or all thread blocks that run at a time advance through k
        together and share the slabs of their rows and columns.
        """
        a, b, miss_a, miss_b, others, pairs = self._streams
        half = max(1, self.cache[1].window // 2)
        if min(a, b) <= half:
            return others + (miss_a + miss_b) * pairs
        # bytes times `pairs` are whole multiples of `unit`: integer arithmetic for arrays and exact fractions alike
        missing: tuple[Any, Any] = (float(miss_a), float(miss_b)) if isinstance(m, np.ndarray) else (miss_a, miss_b)
        best = least(missing[0] * ceil(b / half) + missing[1], missing[1] * ceil(a / half) + missing[0])
        rows = -(-max(s[1] for s in self.shapes) // m)
        columns = -(-self.shapes[0][2] // n)
        high = 1
        while high <= self.core.count:
            tall = least(high, rows)
            wide = least(self.core.count // high, columns)
            best = least(best, missing[0] * -(-columns // wide) + missing[1] * -(-rows // tall))
            high *= 2
        return (float(others) if isinstance(m, np.ndarray) else others) + best * pairs

    @cached_property
    def _written(self) -> Fraction:
        return sum((o.size for o in self.kernel.writes), Fraction(0))

    @cached_property
    def _results(self) -> int:
        return sum(count * m * n for count, m, n, _ in self.shapes)

    @cached_property
    def _epilogue(self) -> tuple[Vector, ...]:
        return tuple(w for op in self.kernel.fused for w in of_operator(op))

    @cached_property
    def estimates(self) -> np.ndarray[Any, Any]:
        """Femtoseconds of every candidate of `table`, as floating-point numbers: the plans' to about one part in 10^12."""
        m, n, split, blocks = self.table.T
        memory, cache = self.target.memory, self.cache[1]
        cycles, grid = self._busiest(m, n, split, blocks)
        busy = cycles * (FS_PER_S / self.target.device.unit_clock(self.unit))
        per_read, per_written = _rate(memory, True), _rate(memory, False)
        per_fed = float(1 / (cache.efficiency * cache.bandwidth)) * FS_PER_S
        written, partial = float(self._written), self._results * SUM_BYTES * split.astype(float)
        whole = split == 1
        main = (self._read(m, n) * per_read + whole * written * per_written) * self._slow_stream
        feed = (self._fed(m, n) / 8 + np.where(whole, written, partial)) * per_fed
        feed = np.maximum(feed, self._port_fs(self._fed(m, n) / 8, grid))
        step = overlap([busy, main, feed, whole * float(self._vector_fs(1))])
        reduce = np.maximum(written * per_written, (partial + written) * per_fed)
        for value in np.unique(split[~whole]):
            chosen = split == value
            reduce[chosen] = np.maximum(reduce[chosen], self._vector_fs(int(value))) + self.core.split_latency
        total: np.ndarray[Any, Any] = step + np.where(whole, 0, reduce) + sum(fs for _, fs in self.setup)
        return total

    @property
    def _slow_stream(self) -> float:
        return 1 / FUSED_STREAM if self.fused else 1.0

    def _port_fs(self, fed: Any, grid: Any) -> Any:
        """Femtoseconds that the SMs with work take to draw what they are fed from the cache."""
        if not self.core.port:
            return fed * 0
        clock = self.target.device.unit_clock(self.unit)
        return fed * (FS_PER_S / (self.core.port * clock)) / least(grid, self.core.count)

    def _vector_fs(self, split: int) -> int:
        jobs = self.vector_share(self._epilogue if split == 1 else (Vector(self._results * split, 1), *self._epilogue))
        return sum(job.fs for job in jobs)

    def bound(self, mapping: OperatorMapping) -> int:
        """Femtoseconds of the tile work alone; for a candidate of this space, its estimate."""
        index = self._index.get(_parameters(mapping))
        return int(self.estimates[index] * (1 - _TIE)) if index is not None else 0

    @cached_property
    def _index(self) -> dict[tuple[int, ...], int]:
        return {tuple(int(v) for v in row): index for index, row in enumerate(self.table)}

    def best(self, capacities: dict[str, int]) -> list[OperatorMapping]:
        """The fitting candidates that no other beats, by the estimates; none where nothing fits.

        Candidates whose estimates are equal are represented by the one that reads least, then by the first.
        """
        m, n, split, blocks = self.table.T
        fits = np.ones(len(self.table), dtype=bool)
        totals: dict[str, Any] = {}
        for pad, size in self._needs(m, n, split, blocks):
            totals[pad] = totals.get(pad, 0) + size
        for pad, size in totals.items():
            fits &= size <= capacities[pad]
        if not fits.any():
            return []
        times = np.where(fits, self.estimates, np.inf)
        close = np.flatnonzero(times <= times.min() * (1 + _TIE))
        read = np.broadcast_to(np.asarray(self._read(m, n), dtype=float), times.shape)
        order = sorted(close.tolist(), key=lambda i: (times[i], read[i], i))
        seen: dict[float, int] = {}
        for index in order:
            seen.setdefault(float(times[index]), index)
        return [self._mapping(self.table[index]) for index in seen.values()]

    def plan(self, mapping: OperatorMapping) -> Plan:
        m, n, split, blocks = _parameters(mapping)
        cycles, grid = self._busiest(m, n, split, blocks)
        macs = sum(count * rows * columns * k for count, rows, columns, k in self.shapes)
        read, fed = Fraction(self._read(m, n)), Fraction(self._fed(m, n)) / 8
        partial = Fraction(self._results * split * SUM_BYTES)
        shared, _ = self.target.pad_capacity("activations", self.unit)
        _, _, columns, k = self.shapes[0]
        rows = max(shape[1] for shape in self.shapes)
        left, right, _ = self.core.operand_elements(Gemm(min(m, rows), min(n, columns), -(-k // split), self.placement[1]))
        crossing = (left * self.kernel.input(0).format.bits + right * self.kernel.input(1).format.bits) / 8 * grid
        busy = cycles_to_fs(cycles, self.target.device.unit_clock(self.unit))
        jobs: tuple[Job, ...] = (Job("multiply", self.unit, cycles, busy, (Move(shared, crossing, fed),), macs=macs),)
        if split == 1:
            feed = self._drawn(self.cache_job(fed, self._written), fed, grid)
            main = tuple(
                replace(job, cycles=fs, fs=fs) for job in self.main_job(read, self._written) for fs in (ceil(job.fs * self._slow_stream),)
            )
            jobs = self.blend((*jobs, *main, *feed, *self.vector_share(self._epilogue)))
            return Plan(mapping, ((jobs,),), (0,), self.footprint(mapping), self.setup)
        jobs = self.blend((*jobs, *self.main_job(read, Fraction(0)), *self._drawn(self.cache_job(fed, partial), fed, grid)))
        works = (Vector(self._results * split, 1), *self._epilogue)
        reduce = (*self.main_job(Fraction(0), self._written), *self.cache_job(partial, self._written), *self.vector_share(works))
        wait = (("reduction", self.core.split_latency),) if self.core.split_latency else ()
        return Plan(mapping, ((jobs,), (reduce,)), (0,), self.footprint(mapping), (*self.setup, *wait))

    def _drawn(self, jobs: tuple[Job, ...], fed: Fraction, grid: int) -> tuple[Job, ...]:
        """The cache's job, no shorter than the SMs take to draw it."""
        least_fs = ceil(self._port_fs(float(fed), grid))
        return tuple(replace(job, cycles=max(job.cycles, least_fs), fs=max(job.fs, least_fs)) for job in jobs)


def _parameters(mapping: OperatorMapping) -> tuple[int, int, int, int]:
    return mapping.integer("m"), mapping.integer("n"), mapping.integer("split"), mapping.integer("blocks")


@lru_cache
def tilings(rows: tuple[int, ...], columns: tuple[int, ...], largest: int = LARGEST_TILE) -> np.ndarray[Any, Any]:
    """Every tile, split and number of blocks side by side of at most `largest` results on an SM."""
    return np.array(
        [
            (m, n, 1 << split, 1 << blocks)
            for m in rows
            for n in columns
            for split in range(6)
            for blocks in range(3)
            if m * n <= largest and (blocks == 0 or (m * n << blocks) <= largest)
        ],
        dtype=np.int64,
    )


def _rate(memory: Any, read: bool) -> float:
    """Femtoseconds per byte."""
    size = 1 << 60
    return float(memory.occupied_fs(size) if read else memory.occupied_fs(0, size)) / size


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
        """Results that the cache still holds from the run before are written there, not to main memory."""
        read = sum((o.size for o in self.kernel.reads), Fraction(0))
        written = sum((o.size for o in self.kernel.writes), Fraction(0))
        jobs = self._at_full_rate(self.main_job(self.missing(self.kernel.reads), self.missing(self.kernel.writes)))
        jobs += self.cache_job(read, written)
        jobs += self._rows(self.vector_share(of_kernel(self.kernel)))
        return Plan(mapping, ((self.blend(jobs),),), (0,), {}, self.setup)

    def _at_full_rate(self, jobs: tuple[Job, ...]) -> tuple[Job, ...]:
        """Main memory's job at the rate that its timing leaves: where every thread of an SM loads, enough is on its way for that. The
        share that `efficiency` takes off is of kernels whose few thread blocks wait for slabs."""
        memory = self.target.memory
        share = memory.efficiency if isinstance(memory, Dram) else Fraction(1)
        return tuple(replace(job, cycles=fs, fs=fs) for job in jobs for fs in (ceil(job.fs * share),))

    def _rows(self, jobs: tuple[Job, ...]) -> tuple[Job, ...]:
        """The vector units' job, and beside it the time that thread blocks take for their rows."""
        if not self.target.device.units_for("vector"):
            return jobs
        name = self.target.vector_unit(self.kernel.name)
        clock = self.target.device.unit_clock(name)
        work = row_work(self.kernel, self.target.unit(name).count, clock)
        missing = self.missing(self.kernel.reads) / max(Fraction(1), sum((o.size for o in self.kernel.reads), Fraction(0)))
        fs = max(work.least_fs, work.waiting_fs + ceil(work.waits * missing * self.target.memory.latency))
        if not fs:
            return jobs
        # the waiting is no whole number of the unit's cycles: it stands on the queue of thread blocks
        queues = (self.target.turns(unit) for unit in (name, *self.target.device.units_for("gemm")))
        if queue := next((queue for queue in queues if queue in self.target.queues), None):
            return (*jobs, Job("rows", queue, fs, fs))
        cycles = fs * clock // FS_PER_S
        job = jobs[0] if jobs else Job("rows", name, 0, 0)
        return (replace(job, cycles=cycles, fs=cycles_to_fs(cycles, clock)),) if cycles > job.cycles else (job,)
